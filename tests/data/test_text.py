"""TextData from end to end: rows, held-out documents, shuffling, mixtures, caches and refused keys."""

import json

import numpy as np
import pytest

from fmjax.data import corpus
from fmjax.data.text import TextData
from fmjax.data.tokenizers import training as tokenizer_training
from fmjax.errors import ConfigError, DataError, InputError

BYTES = dict(tokenizer="bytes", sequence_length=32)


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def documents_of(rows, tokenizer):
    """The documents in rows, by following targets from begin to end marks; pieces are matched by their overlap."""
    pieces = []
    for i in range(len(rows)):
        row = rows[i]
        for segment in range(1, row["segment_ids"].max() + 1):
            here = row["segment_ids"] == segment
            pieces.append(list(row["tokens"][here]) + [row["targets"][here][-1]])
    return pieces


def epoch(data, length):
    class Rows:
        __len__ = lambda self: length  # noqa: E731
        __getitem__ = lambda self, i: data.train[i]  # noqa: E731

    return Rows()


@pytest.fixture(scope="module")
def opened(jsonl, cache_dir):
    return TextData(source=str(jsonl), **BYTES).open(seed=0, cache_dir=cache_dir)


def epoch_length(data, count):
    """Rows of an epoch, by counting rows until the documents' inputs are all seen."""
    seen, i = 0, 0
    while seen < count:
        seen += int((data.train[i]["segment_ids"] > 0).sum())
        i += 1
    assert seen == count
    return i


def test_one_epoch_is_every_training_document_once(opened, texts):
    heldout = list(opened.documents())
    train = [text for text in texts if text not in heldout]
    assert 0 < len(heldout) < 30 and len(train) + len(heldout) == len(texts)
    assert len(opened.evaluation["heldout"]) > 0
    for rows, expected in (
        (epoch(opened, epoch_length(opened, sum(len(t.encode()) + 1 for t in train))), train),
        (opened.evaluation["heldout"], heldout),
    ):
        pieces = documents_of(rows, opened.tokenizer)
        # Each piece is a stretch of just one document; joined by their place, they are the document.
        marked = [[256, *text.encode(), 257] for text in expected]
        wanted = sorted(ids[start : start + 33] for ids in marked for start in range(0, len(ids) - 1, 32))
        assert sorted([int(i) for i in piece] for piece in pieces) == wanted


def test_epochs_are_shuffled_anew_and_rows_are_functions_of_the_index(opened, jsonl, cache_dir, texts):
    train = [text for text in texts if text not in list(opened.documents())]
    length = epoch_length(opened, sum(len(t.encode()) + 1 for t in train))

    def order(data, start):
        return [data.train[i]["tokens"].tobytes() for i in range(start, start + length)]

    first, second = order(opened, 0), order(opened, length)
    assert sorted(first) == sorted(second) and first != second
    again = TextData(source=str(jsonl), **BYTES).open(seed=0, cache_dir=cache_dir)
    assert [again.train[i]["tokens"].tobytes() for i in reversed(range(length))] == first[::-1]
    other = TextData(source=str(jsonl), **BYTES).open(seed=1, cache_dir=cache_dir)
    assert sorted(order(other, 0)) == sorted(first)
    assert order(other, 0) != first and order(other, 0) != second  # Grain adds seed and epoch; they must not meet
    assert opened.train[10**12]["tokens"].shape == (32,)


def test_the_handed_out_object(opened):
    assert opened.model_fields == {"vocab_size": 258}
    assert set(opened.identity) == {"data", "tokenizer"} and "small.jsonl" in opened.identity["data"]

    class Module:
        vocab_size, max_length = 258, 32

    opened.check(Module)
    Module.max_length = 31
    with pytest.raises(ConfigError, match="data.sequence_length is 32, but model.max_length is 31"):
        opened.check(Module)
    Module.max_length, Module.vocab_size = None, 257
    with pytest.raises(ConfigError, match="model.vocab_size is 257.*258"):
        opened.check(Module)
    with pytest.raises(ConfigError, match="no documents 'heldot'; did you mean 'heldout'"):
        opened.documents("heldot")


def test_mixture_follows_weights_past_the_shortest_source(tmp_path, cache_dir, caplog):
    for name, count in (("a", 100), ("b", 7), ("c", 400)):
        write_lines(tmp_path / f"{name}.jsonl", [name * 31] * count)  # rows of one document each, of one letter
    parts = {name: {"source": str(tmp_path / f"{name}.jsonl"), "weight": weight, "heldout_fraction": 0.1}
             for name, weight in (("a", 0.5), ("b", 0.2), ("c", 0.3))}  # fmt: skip
    data = TextData(mixture=parts, **BYTES).open(seed=3, cache_dir=cache_dir)
    letters = np.array([data.train[i]["tokens"][1] for i in range(4000)])
    for name, weight in (("a", 0.5), ("b", 0.2), ("c", 0.3)):
        assert abs((letters == ord(name)).mean() - weight) < 0.005
        assert abs((letters[:200] == ord(name)).mean() - weight) < 0.02  # and so all along, not in blocks
    assert {name: {chr(data.evaluation[name][i]["tokens"][1]) for i in range(len(data.evaluation[name]))}
            for name in data.evaluation} == {"a": {"a"}, "c": {"c"}}  # fmt: skip
    assert "No document of" in caplog.text and "b.jsonl fell to its held-out share" in caplog.text  # 7 documents
    assert list(data.documents("c")) == [d for d in data.documents() if d[0] == "c"]
    assert len(data.documents()) == sum(len(data.documents(name)) for name in "ac")
    assert set(data.identity) == {"data/a", "data/b", "data/c", "tokenizer"}
    heavier = TextData(mixture=parts | {"a": parts["a"] | {"weight": 5}}, **BYTES).open(seed=3, cache_dir=cache_dir)
    letters = np.array([heavier.train[i]["tokens"][1] for i in range(4000)])
    assert abs((letters == ord("a")).mean() - 5 / 5.5) < 0.005


def test_the_first_evaluation_rows_speak_for_all_documents(tmp_path, cache_dir):
    other = write_lines(tmp_path / "other.jsonl", [letter * 320 for letter in "abcdefghij"])
    train = write_lines(tmp_path / "train.jsonl", ["text"] * 60)
    data = TextData(source=train, eval_source=other, **BYTES).open(seed=0, cache_dir=cache_dir)
    rows = data.evaluation["heldout"]
    assert len({chr(rows[i]["tokens"][5]) for i in range(20)}) >= 7  # in order, 20 rows would be of 2 documents
    assert len({rows[i]["tokens"].tobytes() for i in range(len(rows))}) > 10
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_eval_source(tmp_path, jsonl, cache_dir, texts):
    other = write_lines(tmp_path / "other.jsonl", ["held out one", "held out two"])
    data = TextData(source=str(jsonl), eval_source=other, **BYTES).open(seed=0, cache_dir=cache_dir)
    assert list(data.documents()) == ["held out one", "held out two"]
    epoch_length(data, sum(len(text.encode()) + 1 for text in texts))  # nothing of the source is held out
    assert "eval_source" in data.identity


def test_one_book_gives_its_end_as_heldout(tmp_path, cache_dir):
    text = "".join(f"line {i}\r\n" for i in range(1000))
    (tmp_path / "book.txt").write_bytes(text.encode())
    data = TextData(source=str(tmp_path / "book.txt"), **BYTES).open(seed=0, cache_dir=cache_dir)
    (tail,) = data.documents()
    assert text.endswith(tail) and 0.015 < len(tail) / len(text) < 0.025 and tail.startswith("line ")
    epoch_length(data, len(text) - len(tail) + 1)


def test_train_tokenizer_never_sees_heldout_and_is_cached(tmp_path, texts, monkeypatch):
    calls = []
    real = tokenizer_training.train_sentencepiece

    def counted(documents, *settings):
        documents = list(documents)
        calls.append(documents)
        return real(iter(documents), *settings)

    monkeypatch.setattr(tokenizer_training, "train_sentencepiece", counted)
    path = write_lines(tmp_path / "a.jsonl", texts)
    config = TextData(source=path, tokenizer="train:320", sequence_length=16)
    first = config.open(seed=0, cache_dir=tmp_path / "cache")
    assert sorted(calls[0]) == sorted(set(texts) - set(first.documents()))
    built = sorted((tmp_path / "cache").rglob("*"))
    second = config.open(seed=0, cache_dir=tmp_path / "cache")
    assert len(calls) == 1 and sorted((tmp_path / "cache").rglob("*")) == built
    assert second.identity == first.identity
    # A longer row needs no new tokens, changed content needs all anew.
    TextData(source=path, tokenizer="train:320", sequence_length=20).open(seed=0, cache_dir=tmp_path / "cache")
    assert len(calls) == 1
    write_lines(tmp_path / "a.jsonl", [text.replace("alpha", "omega") for text in texts])
    third = config.open(seed=0, cache_dir=tmp_path / "cache")
    assert len(calls) == 2 and third.identity["data"] != first.identity["data"]
    assert "omega" in "".join(third.tokenizer.decode(third.train[i]["tokens"]) for i in range(20))


def test_damaged_caches_are_built_again(tmp_path, jsonl, caplog):
    config = TextData(source=str(jsonl), tokenizer="train:320", sequence_length=32)
    expected = config.open(seed=0, cache_dir=tmp_path).train[3]["tokens"].copy()
    assert not caplog.records
    for place in ("corpora/*/train.tokens", "packing/*-train-*/starts.npy", "tokenizers/*/tokenizer.model"):
        (file,) = tmp_path.glob(place)
        file.write_bytes(file.read_bytes()[:-7])
        np.testing.assert_array_equal(config.open(seed=0, cache_dir=tmp_path).train[3]["tokens"], expected)
        assert file.name in caplog.records[-1].message and caplog.records[-1].name == "fmjax"


def test_a_plan_laid_out_otherwise_has_another_place_in_the_cache(tmp_path, jsonl, monkeypatch):
    config = TextData(source=str(jsonl), **BYTES)
    config.open(seed=0, cache_dir=tmp_path)
    plans = set(tmp_path.glob("packing/[!.]*"))
    monkeypatch.setattr(corpus, "PLAN_VERSION", corpus.PLAN_VERSION + 1)
    config.open(seed=0, cache_dir=tmp_path)
    assert len(set(tmp_path.glob("packing/[!.]*")) - plans) == 2


REFUSED = [
    (dict(source="builtin", mixture={"a": {"source": "builtin"}}), "both set"),
    (dict(text_field="body"), "data.text_field is never read"),
    (dict(heldout_fraction=0.1), "data.heldout_fraction is never read.*of its own"),
    (dict(source="{jsonl}", document_separator="x"), "data.document_separator is never read"),
    (dict(source="{jsonl}", eval_source="{jsonl}", heldout_fraction=0.1), "heldout_fraction is never read"),
    (dict(mixture={"a": {"source": "{jsonl}"}}, text_field="text"), "data.text_field is never read"),
    (dict(mixture={"a": {"source": "builtin", "encoding": "latin-1"}}), "data.mixture.a.encoding is never read"),
    (dict(mixture={"a": {"source": "builtin", "wieght": 2}}), "did you mean 'weight'"),
    (dict(mixture={"a": {"source": "builtin", "weight": 0}}), "data.mixture.a.weight must be a positive number"),
    (dict(mixture={"heldout": {"source": "builtin"}}), "'heldout' is taken"),
    (dict(mixture={"a": "builtin"}), "data.mixture.a must be"),
    (dict(mixture={}), "data.mixture must name"),
    (dict(sequence_length=0), "data.sequence_length must be at least 1"),
    (dict(heldout_fraction=1.0), "data.heldout_fraction must be"),
    (dict(document_separator=""), "data.document_separator is empty"),
    (dict(encoding="no-such"), "data.encoding 'no-such'"),
    (dict(tokenizer="train:many"), "train:VOCAB_SIZE"),
    (dict(tokenizer="nowhere.model"), "no tokenizer at nowhere.model"),
    (dict(source="nowhere/*.txt"), "matches no file"),
    (dict(source="nowhere/a.txt"), "no such file"),
    (dict(source="no_such_package.x:Docs"), "no module named 'no_such_package'"),
]


@pytest.mark.parametrize("fields,message", REFUSED)
def test_refused(fields, message, jsonl, cache_dir):
    fields = json.loads(json.dumps(fields).replace("{jsonl}", str(jsonl)))
    with pytest.raises(InputError, match=message):
        TextData(**{"tokenizer": "bytes"} | fields).open(seed=0, cache_dir=cache_dir)


def test_empty_sources(tmp_path, cache_dir):
    for name, content in (("a.txt", ""), ("b.jsonl", ""), ("c.jsonl", '{"text": ""}\n\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=f"{name} is empty"):
            TextData(source=str(tmp_path / name), **BYTES).open(seed=0, cache_dir=cache_dir)


def test_a_separator_that_occurs_nowhere(tmp_path, cache_dir):
    (tmp_path / "a.txt").write_text("one<|end|>two")
    with pytest.raises(DataError, match=r"'<\|eot\|>' occurs nowhere in .*a\.txt"):
        TextData(str(tmp_path / "a.txt"), document_separator="<|eot|>", **BYTES).open(seed=0, cache_dir=cache_dir)


def test_everything_held_out(tmp_path, cache_dir):
    write_lines(tmp_path / "a.jsonl", ["one", "two"])
    with pytest.raises(DataError, match="all its 2 documents are heldout: set data.heldout_fraction"):
        TextData(source=str(tmp_path / "a.jsonl"), heldout_fraction=0.9999, **BYTES).open(seed=0, cache_dir=cache_dir)


def test_a_failed_open_leaves_no_cache(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2"):
        TextData(source=str(tmp_path / "a.jsonl"), **BYTES).open(seed=0, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "corpora").glob("[!.]*"))
