"""Tokenizers in the files of published models, beside what `transformers` reads from them.

The fixture is written by tests/oracles/make_tokenizer_fixtures.py.
"""

import base64
import json
import pathlib
import re

import pytest

from fmjax.data.tokenizers.loading import has_tokenizer, load_tokenizer, read_eos_ids
from fmjax.errors import TokenizerError

FIXTURE = json.loads((pathlib.Path(__file__).parents[2] / "oracles" / "tokenizers.json").read_text())
CASES, TEXTS, PAIRS = FIXTURE["cases"], FIXTURE["texts"], FIXTURE["pairs_of"]
SENTENCEPIECE = ("llama2", "llama2_not_legacy", "gemma_model", "siglip")


def write(name, folder, **instead):
    """The files of a case; one given as None is left out."""
    for file, content in (CASES[name]["files"] | {k.replace("__", "."): v for k, v in instead.items()}).items():
        if content is not None:
            content = base64.b64decode(content["base64"]) if isinstance(content, dict) else content.encode()
            (folder / file).write_bytes(content)
    return folder


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    return request.param, CASES[request.param], load_tokenizer(write(request.param, folder)), folder


def texts_of(name):
    return [*TEXTS, ">>fra<<Hello world"] if name == "marian" else TEXTS


def differs(name, text):
    """Where SentencePiece itself and `transformers` part ways: it is followed here.

    `transformers` adds no space in front of a text that begins with one, if not "legacy"; and a lossless model is given
    the bytes of U+2581 here, see SentencePieceTokenizer. Of SigLIP's control tokens it does not know <pad>.
    """
    if name == "siglip":
        return "<pad>" in text
    return (name == "llama2_not_legacy" and text[:1] in (" ", "\u2581")) or (name == "gemma_model" and "\u2581" in text)


def names_control_token(name, tokenizer, text):
    """Where `transformers` takes the name of a token for the token; `encode` does not."""
    tokens = (*tokenizer.control_tokens, *(["<|im_", "</s>", "<unk>", "<pad>"] if name in SENTENCEPIECE else []))
    return any(token in text for token in tokens)


def test_ids(case):
    name, expected, tokenizer, _ = case
    assert tokenizer.vocab_size == expected["vocab_size"]
    for text, ids in zip(texts_of(name), expected["ids"], strict=True):
        if not differs(name, text):
            assert name == "marian" or tokenizer.encode_special(text) == ids, text
            assert names_control_token(name, tokenizer, text) or tokenizer.encode(text) == ids, text
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_bytes_of_tokens_spell_what_is_decoded(case):
    name, _, tokenizer, _ = case
    if name in ("marian", "bert", "bert_cased", "openai_gpt", "clip", "clip_json"):
        with pytest.raises(TokenizerError, match="depends on those around it"):
            tokenizer.token_bytes()
        return
    pieces = tokenizer.token_bytes()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if tokenizer.unk_id not in ids:
            found = b"".join(pieces[i] for i in ids).decode()
            assert tokenizer.decode(ids) in (found, found.removeprefix(" ")), text


def test_text_is_text(case):
    """The names of control tokens are ordinary characters to `encode`, which gives back any text that it keeps."""
    name, _, tokenizer, _ = case
    control = {tokenizer.token_to_id(token) for token in tokenizer.control_tokens}
    assert control >= {tokenizer.token_to_id(token) for token in tokenizer.special_tokens.values()}
    for token in {*tokenizer.control_tokens, *tokenizer.special_tokens.values()}:
        text = f"x{token}y {token}"
        ids = tokenizer.encode(text)
        assert tokenizer.encode_batch([text, "z"])[0] == ids
        assert not (control - {tokenizer.unk_id}) & set(ids), token
        if name not in ("marian", "bert", "bert_cased", "openai_gpt", "clip", "clip_json", "siglip"):
            # which do not keep texts as they are
            assert tokenizer.decode(ids) == text
        if name != "marian":
            assert tokenizer.encode_special(text).count(tokenizer.token_to_id(token)) == 2
        inside = tokenizer.encode_pair(text)[0]
        assert len(inside) == len(ids) + len(tokenizer.encode_pair("")[0])


@pytest.mark.parametrize(
    ("named", "model_type", "is_small"),
    [
        ("GemmaTokenizer", "siglip", True), ("GemmaTokenizerFast", "siglip2", True), ("Siglip2Tokenizer", None, True),
        ("GemmaTokenizer", "gemma", False), ("PreTrainedTokenizerFast", "siglip", False),
    ],
)  # fmt: skip
def test_siglip2_reads_gemmas_in_small_letters(tmp_path, named, model_type, is_small):
    stated = json.loads(CASES["gemma"]["files"]["tokenizer_config.json"]) | {"tokenizer_class": named}
    plain = load_tokenizer(write("gemma", tmp_path))
    files = {"tokenizer_config__json": json.dumps(stated), "config__json": json.dumps({"model_type": model_type})}
    found = load_tokenizer(write("gemma", tmp_path, **files))
    small = plain.encode("a photo of a cat")
    assert small != plain.encode("A Photo of a CAT")
    assert found.encode("A Photo of a CAT") == (small if is_small else plain.encode("A Photo of a CAT"))
    found.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("A Photo") == found.encode("A Photo")


def test_special_tokens_are_put_around(case):
    name, expected, tokenizer, _ = case
    for text, ids in zip(texts_of(name), expected["with_special"], strict=True):
        if not differs(name, text) and not names_control_token(name, tokenizer, text):
            assert tokenizer.encode_pair(text)[0] == ids, text
            assert tokenizer.add_bos == (tokenizer.bos_id is not None and ids[:1] == [tokenizer.bos_id])
    for (first, second), ids, types in zip(PAIRS, expected["pairs"], expected["token_types"]):
        named = any(names_control_token(name, tokenizer, TEXTS[text]) for text in (first, second))
        if not differs(name, TEXTS[first]) and not named:
            got = tokenizer.encode_pair(TEXTS[first], TEXTS[second])
            assert got[0] == ids
            assert types is None or got[1] == types


def test_decoding(case):
    name, expected, tokenizer, _ = case
    for text, ids, decoded in zip(texts_of(name), expected["ids"], expected["decoded"], strict=True):
        if tokenizer.unk_id in ids and name in SENTENCEPIECE:
            continue  # SentencePiece shows unknown pieces, transformers leaves them out
        assert tokenizer.decode(ids) == decoded, text


def test_special_tokens_are_named(case):
    _, expected, tokenizer, _ = case
    for name, token in expected["special_tokens"].items():
        assert tokenizer.special_tokens[name] == token
        assert tokenizer.token(getattr(tokenizer, name.replace("token", "id"))) == token
    for token in tokenizer.special_tokens.values():
        assert tokenizer.token(tokenizer.token_to_id(token)) == token
    assert tokenizer.token_to_id("no such token") is None
    with pytest.raises(TokenizerError, match=str(tokenizer.vocab_size)):
        tokenizer.token(tokenizer.vocab_size)


def test_spans_are_the_places_of_tokens(case):
    name, _, tokenizer, _ = case
    if name in ("marian", "siglip"):  # which tell the places of texts between control tokens at most
        return
    text = "Hello 🐙 naïve<s><|im_start|>日本 world"
    ids, spans = tokenizer.encode_special_spans(text)
    assert ids == tokenizer.encode_special(text) and len(ids) == len(spans)
    for token in ("<s>", "<|im_start|>"):
        if tokenizer.token_to_id(token) in ids:
            start, end = spans[ids.index(tokenizer.token_to_id(token))]
            assert text[start:end] == token
    covered = {place for start, end in spans for place in range(start, end)}
    assert {index for index, c in enumerate(text) if not c.isspace()} <= covered
    octopus = [index for index, span in zip(ids, spans) if span[0] <= 6 < span[1]]
    assert octopus == [tokenizer.unk_id] or len(octopus) == 4  # all its bytes


def test_saved_folders_give_the_same_ids(case, tmp_path):
    name, _, tokenizer, _ = case
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    assert has_tokenizer(folder)
    again = load_tokenizer(folder)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.special_tokens == tokenizer.special_tokens
    assert (again.add_bos, again.add_eos) == (tokenizer.add_bos, tokenizer.add_eos)
    for text in TEXTS:
        assert again.encode_pair(text) == tokenizer.encode_pair(text)
        if name != "marian":
            assert again.encode_special(text) == tokenizer.encode_special(text)


def test_mask_and_pair_tokens_of_bert_and_roberta(tmp_path):
    for name in ("bert", "roberta"):
        (tmp_path / name).mkdir()
    bert = load_tokenizer(write("bert", tmp_path / "bert"))
    assert [bert.token(i) for i in (bert.cls_id, bert.sep_id, bert.mask_id)] == ["[CLS]", "[SEP]", "[MASK]"]
    assert bert.bos_id is None and not bert.add_bos
    roberta = load_tokenizer(write("roberta", tmp_path / "roberta", special_tokens_map__json=None))
    ids, types = roberta.encode_pair("a", "b")
    assert [roberta.token(i) for i in ids] == ["<s>", "a", "</s>", "</s>", "b", "</s>"]
    assert [roberta.token(i) for i in roberta.encode_special("a <mask>")] == ["a", "<mask>"]
    assert set(types) == {0} and roberta.add_bos and roberta.add_eos


def test_kinds_of_bpe_are_told_apart_by_their_vocabulary(tmp_path):
    for name in ("gpt2", "roberta", "openai_gpt"):
        folder = tmp_path / name
        folder.mkdir()
        tokenizer = load_tokenizer(write(name, folder, config__json=None))
        assert tokenizer.encode(TEXTS[8]) == CASES[name]["ids"][8]
    files = CASES["gpt2"]["files"]
    folder = tmp_path / "openai"
    folder.mkdir()
    (folder / "encoder.json").write_text(files["vocab.json"])
    (folder / "vocab.bpe").write_text(files["merges.txt"])
    assert load_tokenizer(folder).encode(TEXTS[22]) == CASES["gpt2"]["ids"][22]


def test_tokenizer_json_goes_before_a_model(tmp_path):
    write("llama2", tmp_path, added_tokens__json=None)
    write("llama3", tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == CASES["llama3"]["vocab_size"]


@pytest.mark.parametrize("name, said", [("llama3_flags", "add_bos.*add_eos"), ("qwen3", None), ("opt_ends", None)])
def test_flags_that_a_tokenizer_json_does_not_follow_are_warned_of(name, said, tmp_path, caplog):
    tokenizer = load_tokenizer(write(name, tmp_path))
    assert (tokenizer.add_bos, tokenizer.add_eos) == {"llama3_flags": (True, False), "qwen3": (False, False)}.get(
        name, (True, True)
    )
    found = " ".join(caplog.messages)
    assert re.search(f"{said}.*is not read", found) if said else not found


def test_marian_maps_both_languages(tmp_path):
    tokenizer = load_tokenizer(write("marian", tmp_path))
    for text, ids in zip(texts_of("marian"), CASES["marian"]["target_ids"], strict=True):
        if not any(token in text for token in ("</s>", "<unk>", "<pad>")):
            assert [*tokenizer.encode_target(text), tokenizer.eos_id] == ids
    assert tokenizer.add_eos and not tokenizer.add_bos
    with pytest.raises(TokenizerError, match="no language >>xyz<<.*>>deu<<, >>fra<<"):
        tokenizer.encode(">>xyz<<Hello")


def test_every_id_that_ends_a_text(tmp_path):
    tokenizer = load_tokenizer(write("llama3", tmp_path))
    assert read_eos_ids(tmp_path, tokenizer) == (341, 344)
    (tmp_path / "generation_config.json").unlink()
    assert read_eos_ids(tmp_path, tokenizer) == (tokenizer.eos_id,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert read_eos_ids(tmp_path, tokenizer) == (3,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(TokenizerError, match="config.json: eos_token_id is '</s>'"):
        read_eos_ids(tmp_path)


BAD = {
    "missing merges": ("gpt2", {"merges__txt": None}, "merges.txt beside it, which is not there; fetch it"),
    "bad merges": ("gpt2", {"merges__txt": "#version: 0.2\nnot pieces of it\n"}, "vocab.json and merges.txt are not"),
    "bad vocabulary": ("gpt2", {"vocab__json": "{"}, "vocab.json and merges.txt are not a BPE"),
    "another kind": ("gpt2", {"config__json": '{"model_type": "xlnet"}'}, "which kind of BPE.*'xlnet'"),
    "truncated tokenizer.json": ("llama3", {"tokenizer__json": '{"version": '}, "tokenizer.json is not a"),
    "unknown special": (
        "llama3", {"tokenizer_config__json": '{"pad_token": "<nothing>"}'}, "pad_token '<nothing>' is not in its voc",
    ),
    "malformed config": ("llama3", {"tokenizer_config__json": "{"}, "tokenizer_config.json is not readable JSON"),
    "config of a list": ("llama3", {"tokenizer_config__json": "[]"}, "holds a list, expected a dict"),
    "no flag": ("bert", {"tokenizer_config__json": '{"do_lower_case": "no"}'}, "do_lower_case must be true or false"),
    "no unknown token": ("bert", {"vocab__txt": "a\nb\n"}, "vocab.txt: unk_token '\\[UNK\\]' is not in its vocabulary"),
    "no model": ("llama2", {"tokenizer__model": "text"}, "tokenizer.model is not a SentencePiece model"),
    "ids left free": (
        "llama2", {"added_tokens__json": '{"<|im_start|>": 420, "<|im_end|>": 500}'},
        "'<|im_end|>' has id 500, but the first free id is 421",
    ),
    "no id": (
        "llama2", {"added_tokens__json": None}, "'<|im_start|>' is not in its vocab",
    ),
    "special not in model": (
        "gemma_model", {"tokenizer_config__json": '{"eos_token": "<end>"}'}, "eos_token '<end>' is not in its voc",
    ),
    "added to another": ("llama3", {"added_tokens__json": '{"<new>": 7}'}, "'<new>' gets id 345 .* state 7"),
    "no target": ("marian", {"target__spm": None}, "no target.spm, which a Marian tokenizer needs"),
    "no pieces": ("marian", {"vocab__json": '{"a": 3}'}, "vocab.json does not give each id of 0..0"),
    "not for marian": ("marian", {"vocab__json": '{"a": 0}'}, "eos_token '</s>' is not in vocab.json"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_folders_are_refused(bad, tmp_path):
    name, instead, message = BAD[bad]
    with pytest.raises(TokenizerError, match=re.sub(r"[|](?=[>i])", r"\\|", message)):
        load_tokenizer(write(name, tmp_path, **instead))


def test_a_folder_without_tokenizer_says_what_it_has(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert not has_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"no tokenizer in .*found there: model.safetensors.*expected.*vocab.txt"):
        load_tokenizer(tmp_path)


def test_ids_with_gaps(tmp_path):
    import tokenizers

    model = tokenizers.models.WordLevel({"a": 0, "b": 7, "<unk>": 2}, "<unk>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.num_added) == (8, 0) and tokenizer.encode("b") == [7]
    assert tokenizer.decode([7]) == "b" == tokenizer.decode([5, 7]) and tokenizer.token(7) == "b"
    with pytest.raises(TokenizerError, match="no token with id 5"):
        tokenizer.token(5)
