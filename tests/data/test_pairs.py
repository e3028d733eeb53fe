"""Parallel text: packed rows hold the pairs, capacities and alignment are kept, and what cannot be used is told."""

import base64
import gzip
import json
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data import run_tokenizer
from fmjax.data.formats import Reading, read_lines
from fmjax.data.packing import pack_pairs
from fmjax.data.pairs import PairData
from fmjax.data.tokenizers.loading import load_tokenizer
from fmjax.errors import ConfigError, DataError
from fmjax.objectives.seq2seq import Seq2Seq

BOS, EOS, VOCAB = 1, 2, 300


class LetterTokenizer:
    """Characters, with marks."""

    vocab_size, bos_id, eos_id, pad_id, fingerprint = VOCAB, BOS, EOS, None, "letters"

    def encode(self, text):
        return [ord(letter) for letter in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    monkeypatch.setattr(run_tokenizer, "load_tokenizer", lambda wanted: LetterTokenizer())


def make_pairs(count, seed=0, longest=12):
    rng = random.Random(seed)
    word = lambda: "".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, longest)))
    return [(f"{i}{word()}", f"{i}{word()}".upper()) for i in range(count)]


def write(folder, pairs, name="train"):
    for language, lines in zip(("de", "en"), zip(*pairs)):
        with gzip.open(folder / f"{name}.{language}.gz", "wt", encoding="utf-8", newline="") as file:
            file.write("".join(line + "\n" for line in lines))
    return {"source_file": str(folder / f"{name}.de.gz"), "target_file": str(folder / f"{name}.en.gz")}


def opened(cache_dir, seed=0, **fields):
    return PairData(**dict(tokenizer="letters", sequence_length=40, source_length=32) | fields).open(
        seed=seed, cache_dir=cache_dir
    )


def pairs_of(row):
    """(source, target) strings of a row, its frames checked."""
    found = []
    for segment in range(1, row["segment_ids"].max() + 1):
        target, source = row["segment_ids"] == segment, row["source_segment_ids"] == segment
        tokens, targets, sources = row["tokens"][target], row["targets"][target], row["source_tokens"][source]
        assert tokens[0] == BOS and targets[-1] == EOS == sources[-1]
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
        np.testing.assert_array_equal(row["positions"][target], np.arange(target.sum()))
        np.testing.assert_array_equal(row["source_positions"][source], np.arange(source.sum()))
        found.append(("".join(map(chr, sources[:-1])), "".join(map(chr, targets[:-1]))))
    return found


def epoch_of(data, count, start=0):
    found, rows = [], 0
    while len(found) < count:
        found += pairs_of(data.train[start + rows])
        rows += 1
    assert len(found) == count
    return found, rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pairs"), make_pairs(200))


def test_an_epoch_holds_every_pair_once(files, cache_dir):
    data = opened(cache_dir, heldout_fraction=0.1, **files)
    heldout = [pair for i in range(len(data.evaluation["heldout"])) for pair in pairs_of(data.evaluation["heldout"][i])]
    kept = list(zip(data.documents("heldout_source"), data.documents("heldout_target")))
    assert sorted(heldout) == sorted(kept) and 5 < len(heldout) < 40
    train = sorted(set(make_pairs(200)) - set(heldout))
    first, rows = epoch_of(data, len(train))
    second, _ = epoch_of(data, len(train), rows)
    assert sorted(first) == sorted(second) == train and first != second
    row = data.train[0]
    assert {name: (array.shape, array.dtype) for name, array in row.items()} == {
        **{name: ((40,), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")},
        "loss_weights": ((40,), np.float32),
        **{name: ((32,), np.int32) for name in ("source_tokens", "source_segment_ids", "source_positions")},
    }
    np.testing.assert_array_equal(row["loss_weights"], row["segment_ids"] > 0)
    assert data.model_fields == {"vocab_size": VOCAB}


def test_rows_are_functions_of_config_seed_and_index(files, cache_dir, tmp_path):
    data, again, other = opened(cache_dir, **files), opened(tmp_path, **files), opened(cache_dir, seed=1, **files)
    rows = [data.train[i] for i in range(20)]
    for i in reversed(range(20)):
        for name in rows[i]:
            np.testing.assert_array_equal(again.train[i][name], rows[i][name])
    assert sum(np.array_equal(other.train[i]["tokens"], rows[i]["tokens"]) for i in range(20)) < 5


def test_records_with_two_fields(tmp_path, cache_dir):
    pairs = make_pairs(60, seed=1)
    lines = "".join(json.dumps({"de": source, "en": target}) + "\n" for source, target in pairs)
    (tmp_path / "pairs.jsonl").write_text(lines)
    data = opened(
        cache_dir, source=str(tmp_path / "pairs.jsonl"), source_field="de", target_field="en", heldout_fraction=0.0
    )
    assert sorted(epoch_of(data, 60)[0]) == sorted(pairs) and not data.evaluation


def test_files_of_their_own_for_evaluation(files, tmp_path, cache_dir):
    evaluated = write(tmp_path, make_pairs(9, seed=2), "val")
    data = opened(cache_dir, **files, **{f"eval_{name}": path for name, path in evaluated.items()})
    epoch_of(data, 200)
    heldout = [pair for i in range(len(data.evaluation["heldout"])) for pair in pairs_of(data.evaluation["heldout"][i])]
    assert sorted(heldout) == sorted(make_pairs(9, seed=2)) and set(data.identity) == {
        "data",
        "tokenizer",
        "eval_source",
    }
    with pytest.raises(ConfigError, match="no documents 'heldout'; did you mean 'heldout_"):
        data.documents()


def test_pairs_that_cannot_be_used_are_counted_or_refused(tmp_path, cache_dir, caplog):
    pairs = [("a", "b"), ("x" * 32, "y"), ("x", "y" * 40), ("", "z"), ("z", "  "), ("x" * 31, "y" * 39)]
    files = write(tmp_path, pairs)
    for _ in range(2):  # from the cache too
        caplog.clear()
        data = opened(cache_dir, heldout_fraction=0.0, **files)
        assert sorted(epoch_of(data, 2)[0]) == [pairs[0], pairs[5]]
        assert "of 6 train pairs, 2 are left out because they are longer than a row of (32, 40)" in caplog.text
        assert "and 2 because a side is empty" in caplog.text
    with pytest.raises(DataError, match=r"2 train pairs .* are longer .* pair 1 of its split, has \(33, 2\)"):
        opened(cache_dir, heldout_fraction=0.0, overlong="error", **files)
    with pytest.raises(DataError, match="no train pair that could be used"):
        opened(cache_dir, heldout_fraction=0.0, **write(tmp_path, pairs[1:5], "none"))


@pytest.mark.parametrize("missing", [0, 1])
def test_files_of_different_length_are_refused(tmp_path, cache_dir, missing):
    files = write(tmp_path, make_pairs(20))
    path = tmp_path / ("train.de.gz", "train.en.gz")[missing]
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()[:17]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    counts = (17, 20) if missing == 0 else (20, 17)
    with pytest.raises(DataError, match=r"train.de.gz has %d lines, but .*train.en.gz has %d" % counts):
        opened(cache_dir, **files)


def test_lines_end_at_newlines_alone(tmp_path):
    path = tmp_path / "lines.de"
    path.write_bytes("a\u2028b\x0cc\r\nd\n\ne".encode())
    assert list(read_lines(path, Reading())) == [(1, "a\u2028b\x0cc"), (2, "d"), (3, ""), (4, "e")]
    path.write_bytes(b"")
    assert list(read_lines(path, Reading())) == []


def test_packing_keeps_both_capacities():
    rng = np.random.default_rng(0)
    lengths = np.stack([rng.integers(1, 41, 5000), rng.integers(1, 61, 5000)], axis=1)
    order, bins = pack_pairs(lengths, (100, 128))
    assert sorted(order) == list(range(5000)) and (np.diff(bins) > 0).all()
    filled = np.add.reduceat(lengths[order], bins[:-1])
    assert (filled <= (100, 128)).all()
    assert (filled / (100, 128)).max(axis=1).mean() > 0.97


def encoder_decoder(variables, tokens, source_tokens, segment_ids, source_segment_ids, positions, source_positions,
                    train, rngs, method):  # fmt: skip
    """A reference of one head: a target token sees its own segment up to itself, and the sources of its segment."""
    assert method == "features"
    table, place = variables["params"]["table"], variables["params"]["place"]
    x, source = table[tokens] + place[positions], table[source_tokens] + place[source_positions]
    own = (segment_ids[:, :, None] == segment_ids[:, None]) & (positions[:, :, None] >= positions[:, None])
    cross = segment_ids[:, :, None] == source_segment_ids[:, None]
    for keys, mask in ((x, own), (source, cross)):
        scores = jnp.where(mask & (segment_ids[:, :, None] > 0), x @ keys.swapaxes(1, 2), -1e9)
        x = x + jax.nn.softmax(scores) @ keys
    return x, {"embedding": table}


def test_packed_pairs_give_the_loss_and_gradient_of_single_ones(files, cache_dir):
    data = opened(cache_dir, **files)
    packed = [data.train[i] for i in range(6)]
    single = []
    for row in packed:
        for segment in range(1, row["segment_ids"].max() + 1):
            one = {}
            for name, array in row.items():
                of = "source_segment_ids" if name.startswith("source") else "segment_ids"
                here = row[of] == segment
                one[name] = np.zeros_like(array)
                one[name][: here.sum()] = 1 if name == of else array[here]
            single.append(one)
    assert len(single) > 2 * len(packed)
    packed += [{name: np.zeros_like(array) for name, array in packed[0].items()}] * (len(single) - len(packed))
    keys = jax.random.split(jax.random.key(0))
    params = {"table": jax.random.normal(keys[0], (VOCAB, 8)), "place": jax.random.normal(keys[1], (40, 8))}

    def loss(params, batch):
        total, weight = Seq2Seq(label_smoothing=0.1)(encoder_decoder, params, batch, None, True)["loss"]
        return total / weight

    stacked = [{name: np.stack([row[name] for row in rows]) for name in rows[0]} for rows in (packed, single)]
    step = jax.jit(jax.value_and_grad(loss))
    (a, grad_a), (b, grad_b) = (step(params, batch) for batch in stacked)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), grad_a, grad_b)


def test_refused(tmp_path, files):
    for fields, message in (
        ({}, "set data.source_file and data.target_file.*none of them"),
        ({"source_file": "a"}, "the config has data.source_file"),
        (files | {"source": "a"}, "or data.source alone"),
        (files | {"eval_target_file": "a"}, "set data.eval_source_file and"),
        ({"source": "a.jsonl"}, "need data.source_field and data.target_field"),
        (files | {"source_field": "de"}, "data.source_field is never read"),
        (files | {"tfds_data_dir": "x"}, "data.tfds_data_dir is never read"),
        (files | {"overlong": "cut"}, "data.overlong='cut' is not known"),
        (files | {"source_length": 0}, "data.source_length"),
        (files | {"encoding": "utf-9"}, "utf-9"),
    ):
        with pytest.raises(ConfigError, match=message):
            PairData(**fields)
    with pytest.raises(DataError, match="no such file"):
        opened(tmp_path, source_file="nowhere.de", target_file="nowhere.en")


def test_a_module_that_does_not_fit_is_refused(files, cache_dir, monkeypatch):
    data = opened(cache_dir, **files)

    class Module:
        vocab_size, max_length, start_id = VOCAB, 40, BOS

    data.check(Module)
    for field, value, message in (
        ("vocab_size", VOCAB - 1, "model.vocab_size"),
        ("max_length", 39, "data.sequence_length is 40, but model.max_length is 39"),
        ("start_id", 0, "model.start_id is 0"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match=message):
            patch.setattr(Module, field, value)
            data.check(Module)
    monkeypatch.setattr(LetterTokenizer, "bos_id", None)
    with monkeypatch.context() as patch:
        patch.setattr(LetterTokenizer, "pad_id", 0)
        with pytest.raises(ConfigError, match="start_id is 1, but .* padding token, as it has no BOS: 0"):
            opened(cache_dir, **files).check(Module)
    with pytest.raises(ConfigError, match="has no bos_id, which targets begin with"):
        opened(cache_dir, **files)


def test_a_published_translation_model_has_its_own_start_and_pieces_of_each_language(tmp_path, cache_dir, monkeypatch):
    oracle = pathlib.Path(__file__).parents[1] / "oracles" / "tokenizers.json"
    for name, content in json.loads(oracle.read_text())["cases"]["marian"]["files"].items():
        content = base64.b64decode(content["base64"]) if isinstance(content, dict) else content.encode()
        (tmp_path / name).write_bytes(content)
    tokenizer = load_tokenizer(tmp_path)
    monkeypatch.setattr(run_tokenizer, "load_tokenizer", lambda wanted: tokenizer)
    line = "Hello world the"
    data = opened(cache_dir, heldout_fraction=0.0, **write(tmp_path, [(line, line)] * 3))
    row = data.train[0]
    source, target = tokenizer.encode(line), tokenizer.encode_target(line)
    assert source != target and tokenizer.bos_id is None
    assert row["source_tokens"][row["source_segment_ids"] == 1].tolist() == [*source, tokenizer.eos_id]
    first = row["segment_ids"] == 1
    assert row["tokens"][first].tolist() == [tokenizer.pad_id, *target]
    assert row["targets"][first].tolist() == [*target, tokenizer.eos_id]

    class Module:
        vocab_size, max_length, start_id = tokenizer.vocab_size, 40, tokenizer.pad_id

    data.check(Module)
