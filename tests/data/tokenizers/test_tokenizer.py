"""Tokenizers give every text back, keep special ids apart, and survive saving."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from fmjax.data.tokenizers.loading import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    cut_at_lines,
    load_tokenizer,
)
from fmjax.data.tokenizers.training import sample_documents, train_sentencepiece
from fmjax.errors import TokenizerError

TRICKY = [
    "", " ", "  ", "\n", "\n\n   \n", "\t\tx\t", "\r\n \r", "\0a\0", "a\u2581b", "\u2581", " \u2581\u2581 ",
    "⁇ \u2047 \u2585", "<s> </s> <unk> <0x0A> <pad>", "e\u0301 é ﬁ ² Å", "\ufeffbom",
    "\ufffd\ufffe", "\U0010ffff😀👩‍👩‍👧", "日本語\u3000テスト",
    "trailing  ", "  leading", "1234567890", "a" * 5000, "\n" * 5000,
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(texts):
    return SentencePieceTokenizer(train_sentencepiece(texts, 340))


@pytest.fixture(scope="module")
def hugging_face():
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    model.train_from_iterator(["some text to learn from " * 20], trainer)
    model.enable_truncation(4)  # as files saved after fine-tuning have it: must not cut documents
    model.enable_padding(length=8)
    return HuggingFaceTokenizer(model.to_str(), {"bos_token": "<bos>", "eos_token": "<eos>"})


@pytest.fixture(params=["bytes", "trained", "hugging_face"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue(request.param)


def random_texts(count):
    """Any characters but halves of surrogate pairs; from narrow ranges too, so that merges happen."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        top = rng.choice([64, 128, 0x300, 0x2600, 0x110000])
        points = rng.integers(0, top, rng.integers(0, 60))
        yield "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def test_round_trip(tokenizer):
    if isinstance(tokenizer, HuggingFaceTokenizer):
        cases = [text for text in TRICKY if "<" not in text] + list(random_texts(200))
    else:
        cases = TRICKY + list(random_texts(500))
    batch = tokenizer.encode_batch(cases)
    for text, ids in zip(cases, batch):
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.bos_id not in ids and tokenizer.eos_id not in ids
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


def test_bytes_of_tokens_are_those_of_the_text(tokenizer):
    pieces = tokenizer.token_bytes()
    assert len(pieces) == tokenizer.vocab_size
    for text in [*TRICKY, *random_texts(100)]:
        assert b"".join(pieces[i] for i in tokenizer.encode(text)) == text.encode()
    assert all(pieces[tokenizer.token_to_id(token)] == b"" for token in tokenizer.control_tokens)


def test_saved_and_loaded_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert all(file.name.startswith("tokenizer") for file in tmp_path.iterdir())
    for name in ("fingerprint", "vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert again.encode("naïve text\n") == tokenizer.encode("naïve text\n")


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=str(bad)):
            tokenizer.decode([5, bad])


def test_trained_pieces(trained, texts):
    assert trained.vocab_size == 340
    assert (trained.bos_id, trained.eos_id, trained.pad_id) == (1, 2, None)
    text = "".join(texts)
    assert len(text.encode()) / len(trained.encode(text)) > 2.5  # it learned the words
    pieces = trained._processor.encode("    return 12\n", out_type=str)
    assert "1" in pieces and "2" in pieces  # digits stand alone
    assert any(piece.startswith("▁▁") for piece in pieces)  # runs of spaces are pieces


def test_a_mask_among_the_pieces_is_the_mask(texts, tmp_path):
    tokenizer = SentencePieceTokenizer(train_sentencepiece(texts, 340, specials=("<mask>",)))
    assert tokenizer.mask_id == 3 and tokenizer.token(3) == "<mask>"
    assert 3 not in tokenizer.encode("a <mask>") and 3 in tokenizer.encode_special("a <mask>")
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).mask_id == 3


def test_bytes_have_names():
    tokenizer = ByteTokenizer()
    assert [tokenizer.token(i) for i in (65, 0, 255, 256, 257)] == ["A", "<0x00>", "<0xFF>", "<bos>", "<eos>"]
    assert tokenizer.token_to_id("<eos>") == 257 and tokenizer.token_to_id("é") is None
    assert tokenizer.encode_pair("a", "b") == ([256, 97, 256, 98], [0, 0, 1, 1])


def test_training_is_deterministic(texts):
    assert train_sentencepiece(texts, 340) == train_sentencepiece(list(texts), 340)


def test_long_texts_are_cut_without_loss(trained, monkeypatch):
    text = "line one\nline two\n\u2581x" * 40
    monkeypatch.setattr("fmjax.data.tokenizers.sentencepiece._LONGEST_ENCODED", 37)
    assert trained.decode(trained.encode(text)) == text


def test_cut_at_lines():
    assert cut_at_lines("ab\ncd\nef", 5) == ["ab", "\ncd", "\nef"]
    assert cut_at_lines("abcdefg", 3) == ["abc", "def", "g"]
    assert cut_at_lines("", 3) == []


def test_sampling_keeps_whole_documents_within_the_limit():
    documents = [f"{i:04d}" * 25 for i in range(1000)]
    assert sample_documents(documents, 10**6) == documents
    sample = sample_documents(iter(documents), 10_000)
    assert 90 <= len(sample) <= 100 and set(sample) <= set(documents) and sample == sorted(sample)
    assert len([text for text in sample if int(text[:4]) >= 500]) > 25  # from all over
    assert [len(text) for text in sample_documents(["x" * 50], 20)] == [20]


def test_errors_say_what_to_do(tmp_path, texts):
    with pytest.raises(TokenizerError, match=r"at most \d+ pieces.*use 'train:\d+'"):
        train_sentencepiece(texts, 30_000)
    with pytest.raises(TokenizerError, match="300"):
        train_sentencepiece(texts, 100)
    with pytest.raises(TokenizerError, match="no text"):
        train_sentencepiece([], 400)
    with pytest.raises(TokenizerError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nothing.model")
    with pytest.raises(TokenizerError, match="tokenizer.model, tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="bad.model is not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


def test_specials_of_a_tokenizer_json_are_read_beside_it(hugging_face, tmp_path):
    hugging_face.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}, "bos_token": None}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.bos_id is None and loaded.eos_id == hugging_face.eos_id
    assert loaded.fingerprint != hugging_face.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(TokenizerError, match="eos_token '<end>' is not in its vocabulary"):
        load_tokenizer(tmp_path)


def test_a_merge_that_makes_a_control_token_does_not_in_texts():
    """Trained on texts with <s>, the merges lead to its name; the vocabulary of a Unigram model holds it at once."""
    pieces = {piece: index for index, piece in enumerate(["<s>", "<", "s", ">", "<s", "a", "</s>", "/"])}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [("<", "s"), ("<s", ">")]))
    whole = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -float(i > 0)) for i, piece in enumerate(pieces)]))
    for model in (bpe, whole):
        tokenizer = HuggingFaceTokenizer(model.to_str(), {"bos_token": "<s>", "eos_token": "</s>"})
        spelt = [tokenizer.token_to_id(c) for c in "a<s>a"]
        assert tokenizer.encode("a<s>a") == tokenizer.encode_pair("a<s>a")[0] == spelt
        assert tokenizer.encode_batch(["a", "a<s>a"]) == [[5], spelt]
        assert tokenizer.encode_special("a<s>a") == [5, 0, 5]


def test_a_control_token_among_the_pieces_of_a_model_is_none_in_texts(tmp_path):
    """Gemma's <start_of_turn> is a piece that SentencePiece itself finds in a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the turn of the user"] * 20), model_writer=model, vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, user_defined_symbols=["<turn>", "<table>"], minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": ["<turn>"]}))
    tokenizer = load_tokenizer(tmp_path)
    turn, table = (tokenizer.token_to_id(token) for token in ("<turn>", "<table>"))
    ids = tokenizer.encode("the <turn> of <table>")
    assert turn not in ids and table in ids and tokenizer.decode(ids) == "the <turn> of <table>"
    assert turn in tokenizer.encode_special("the <turn> of <table>")
