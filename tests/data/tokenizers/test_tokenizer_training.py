"""WordPiece and byte-level BPE trained on a run's own documents."""

import pytest

from fmjax.data.run_tokenizer import open_tokenizer
from fmjax.data.text import TextData
from fmjax.data.tokenizers import training
from fmjax.data.tokenizers.loading import load_tokenizer
from fmjax.data.tokenizers.training import train_bpe, train_wordpiece
from fmjax.errors import ConfigError, TokenizerError

TRAINERS = {"train_wordpiece": train_wordpiece, "train_bpe": train_bpe}
SIZES = {"train_wordpiece": 170, "train_bpe": 330, "train": 340}


@pytest.fixture(scope="module")
def corpus(texts):
    words = "the cat sat on the mat; a dog, naïve and ÜBER-happy, ran 12 miles in 日本 quickly\n"
    return [*texts[:40], *[words * 3] * 5, "unhappily happiness catlike " * 20]


@pytest.fixture(scope="module", params=TRAINERS)
def trained(request, corpus):
    return request.param, TRAINERS[request.param](corpus, SIZES[request.param])


def test_training_is_deterministic(trained, corpus):
    name, tokenizer = trained
    assert all(TRAINERS[name](list(corpus), SIZES[name]).fingerprint == tokenizer.fingerprint for _ in range(4))


def test_special_tokens_come_first_in_the_published_order(trained):
    name, tokenizer = trained
    assert tokenizer.vocab_size == SIZES[name]
    first = [tokenizer.token(i) for i in range(5)]
    if name == "train_wordpiece":
        assert first == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        ids, types = tokenizer.encode_pair("The cat", "a dog")
        assert (ids[0], ids.count(3), ids[-1]) == (2, 2, 3)
        assert types == sorted(types) and types.count(1) == len(tokenizer.encode("a dog")) + 1
        assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
            *range(5),
        )
    else:
        assert first == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        ids, types = tokenizer.encode_pair("The cat", "a dog")
        assert (ids[0], ids.count(2), ids[-1]) == (0, 3, 2) and set(types) == {0}
        assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id) == (
            *range(5),
        )


def test_words_are_learned_and_given_back(trained):
    name, tokenizer = trained
    text = "the cat sat on the mat; a naïve dog, 12 miles"
    ids = tokenizer.encode(text)
    assert len(ids) < len(text) * 0.6 and tokenizer.unk_id not in ids
    if name == "train_wordpiece":
        assert tokenizer.decode(ids) == "the cat sat on the mat ; a naive dog, 12 miles"
        assert tokenizer.encode("THE Cät") == tokenizer.encode("the cat")
        assert tokenizer.encode("\u16a0") == [tokenizer.unk_id]
        assert any(tokenizer.token(i).startswith("##") for i in tokenizer.encode("happilysat"))
    else:
        for exact in (text, "\u16a0 😀\n\n \0", ""):
            assert tokenizer.decode(tokenizer.encode(exact)) == exact


def test_sizes_that_cannot_be_met(corpus):
    for name, train in TRAINERS.items():
        with pytest.raises(TokenizerError, match=rf"'{name}:100000' .* yields at most (\d+) pieces: use '{name}:\d+'"):
            train(corpus, 100_000)
        with pytest.raises(TokenizerError, match="no text"):
            train([], 400)
    with pytest.raises(TokenizerError, match=r"characters alone need \d+ pieces"):
        train_wordpiece(corpus, 20)
    with pytest.raises(TokenizerError, match="at least 261"):
        train_bpe(corpus, 260)


class Documents:
    """As much of a source as `open_tokenizer` reads."""

    def __init__(self, texts, fingerprint):
        self.texts, self.fingerprint, self.reads = texts, fingerprint, 0

    def stream(self):
        self.reads += 1
        yield from (("train", text) for text in self.texts)
        yield "heldout", "\u16a0\u16a1"


def test_a_config_names_them(corpus, tmp_path):
    source = Documents(corpus, "documents")
    opened = {name: open_tokenizer(f"{name}:{SIZES[name]}", [source], tmp_path) for name in SIZES}
    assert source.reads == 3 and len({tokenizer.fingerprint for tokenizer in opened.values()}) == 3
    for name, train in TRAINERS.items():
        assert opened[name].fingerprint == train(corpus, SIZES[name]).fingerprint
        assert open_tokenizer(f"{name}:{SIZES[name]}", [source], tmp_path).fingerprint == opened[name].fingerprint
        (tmp_path / name).mkdir()
        opened[name].save(tmp_path / name)
        again = load_tokenizer(tmp_path / name)
        assert again.fingerprint == opened[name].fingerprint and again.mask_id == opened[name].mask_id
        assert {file.name for file in (tmp_path / name).iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert source.reads == 3  # from the cache


@pytest.mark.parametrize("wanted", ["train_bpe", "train_wordpiece:many", "train_bpe:-4", "train:"])
def test_malformed_names_are_refused(wanted):
    with pytest.raises(ConfigError, match=f"'{wanted}': expected '{wanted.partition(':')[0]}:VOCAB_SIZE'"):
        TextData(tokenizer=wanted)


def test_no_text_is_no_internal_error_of_the_library():
    with pytest.raises(TokenizerError, match="the documents hold no text to train on"):
        training.train_sentencepiece([""], 400)
