"""Masked text from end to end: what is masked and how often, pairs, epochs, seeds, held-out rows, refused settings."""

import hashlib

import numpy as np
import pytest
from numbers_text import CLS, MASK, PAD, SEP, SPECIALS, NumberTokenizer, number_documents, places, write_documents

from fmjax.data import run_tokenizer
from fmjax.data.loader import Loader
from fmjax.data.masked_text import MaskedStream, MaskedTextData
from fmjax.data.masking import Masker
from fmjax.data.tokenizers import training as tokenizer_training
from fmjax.errors import ConfigError, DataError

DOCUMENTS = number_documents(count=60, longest=9)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("numbers") / "numbers.jsonl", DOCUMENTS)


@pytest.fixture(autouse=True)
def numbers(monkeypatch):
    monkeypatch.setattr(run_tokenizer, "load_tokenizer", lambda wanted: NumberTokenizer())


def opened(path, cache_dir, seed=0, **fields):
    fields = dict(source=path, tokenizer="numbers", sequence_length=32, heldout_fraction=0.1) | fields
    return MaskedTextData(**fields).open(seed=seed, cache_dir=cache_dir)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


BERT = dict(next_sentence=True, masking="static", duplicates=3)


@pytest.mark.parametrize("fields", [BERT, dict(masking="dynamic"), dict(sentences="ignore", masking="static")])
def test_rows(path, cache_dir, fields):
    data = opened(path, cache_dir, **fields)
    for i in range(100):
        row = data.train[i]
        length = int((row["segment_ids"] > 0).sum())
        names = {"tokens", "targets", "segment_ids", "positions", "loss_weights", "masked_positions"}
        if "next_sentence" in fields:
            names |= {"token_types", "next_sentence_labels"}
            assert row["next_sentence_labels"].shape == ()
        assert set(row) == names
        assert {row[name].shape for name in names - {"masked_positions", "next_sentence_labels"}} == {(32,)}
        assert {row[name].dtype for name in names - {"loss_weights"}} == {np.dtype(np.int32)}
        np.testing.assert_array_equal(row["segment_ids"], [1] * length + [0] * (32 - length))
        np.testing.assert_array_equal(row["positions"], [*range(length)] + [0] * (32 - length))
        np.testing.assert_array_equal(row["targets"][length:], PAD)
        chosen = np.flatnonzero(row["loss_weights"])
        assert len(chosen) == min(5, max(1, round(0.15 * length))) and row["loss_weights"].dtype == np.float32
        np.testing.assert_array_equal(row["masked_positions"], [*chosen] + [0] * (5 - len(chosen)))
        assert row["targets"][0] == CLS and row["targets"][length - 1] == SEP
        assert not np.isin(row["targets"][chosen], SPECIALS).any()
        untouched = row["loss_weights"] == 0
        np.testing.assert_array_equal(row["tokens"][untouched], row["targets"][untouched])


def test_shares_of_masked_random_and_kept_tokens():
    masker = Masker(66, 10, 0.15, MASK, SPECIALS, 1000, PAD)
    row = {"tokens": np.array([CLS, *range(100, 164), SEP], np.int32)}
    masked = [masker(row, ["seed", i]) for i in range(2000)]
    chosen = np.array([m["loss_weights"] for m in masked]) > 0
    assert (chosen.sum(axis=1) == 10).all() and not chosen[:, [0, 65]].any()
    tokens, targets = (np.array([m[name] for m in masked])[chosen] for name in ("tokens", "targets"))
    count = len(tokens)
    random = tokens[(tokens != MASK) & (tokens != targets)]
    for found, share in ((tokens == MASK, 0.8), (tokens == targets, 0.1 + 0.1 / 996)):
        assert abs(found.mean() - share) < 4 * np.sqrt(share * (1 - share) / count)
    assert random.min() >= 4 and random.max() >= 990 and len(set(random.tolist())) > 700  # from the whole vocabulary
    # Each place is chosen equally often: a chi-squared statistic of 63 degrees of freedom.
    places_chosen, expected = chosen[:, 1:65].sum(axis=0), count / 64
    assert ((places_chosen - expected) ** 2 / (expected * (1 - 10 / 64))).sum() < 63 + 4 * np.sqrt(2 * 63)


def test_few_tokens_are_masked_at_least_once_and_never_more_than_there_are():
    masker = Masker(8, 4, 0.5, MASK, SPECIALS, 1000, PAD)
    for tokens, count in (([CLS, 9, SEP], 1), ([CLS, SEP], 0), ([CLS, 9, MASK, 10, MASK, SEP, 11, SEP], 3)):
        masked = masker({"tokens": np.array(tokens, np.int32)}, ["seed"])
        assert masked["loss_weights"].sum() == count
    assert (
        Masker(8, 1, 0.5, MASK, SPECIALS, 1000, PAD)({"tokens": np.arange(4, 12, dtype=np.int32)}, [0])[
            "loss_weights"
        ].sum()
        == 1
    )  # max_predictions


def test_next_sentence_labels_tell_the_truth(path, cache_dir):
    data, place = opened(path, cache_dir, **BERT), places(DOCUMENTS)
    labels = []
    for rows in (data.train, data.evaluation["heldout"]):
        for i in range(min(200, len(rows))):
            row = rows[i]
            targets, types = row["targets"], row["token_types"]
            first, second = targets[1:][types[1:] == 0], targets[(types == 1) & (targets != SEP)]
            first = first[first > SEP]
            (a, last), (b, begin) = place[first[-1]], place[second[0]]
            label = int(row["next_sentence_labels"])
            assert label == (a != b)
            if label == 0:
                assert begin >= last and second[0] > first[-1]
            labels.append(label)
    assert 0.3 < np.mean(labels) < 0.8


def test_every_epoch_holds_every_row_and_static_masks_come_again(path, cache_dir):
    data = opened(path, cache_dir, masking="static", duplicates=3)
    words = sum(len(s) for d in DOCUMENTS for s in d) - sum(len(d.split()) for d in data.documents())
    length = 0  # of an epoch: every word occurs once in it
    while words > 0:
        words -= int((data.train[length]["targets"] > MASK).sum())
        length += 1
    assert words == 0

    def epoch(number):
        rows = [data.train[number * length + i] for i in range(length)]
        return {row["targets"].tobytes(): row for row in rows}, [row["targets"].tobytes() for row in rows]

    (first, order), (second, other_order), (fourth, _) = epoch(0), epoch(1), epoch(3)
    assert set(first) == set(second) == set(fourth) and len(first) == length and order != other_order
    assert all(same(first[key], fourth[key]) for key in first)  # duplicate 0 again
    repeated = [np.array_equal(first[key]["loss_weights"], second[key]["loss_weights"]) for key in first]
    assert np.mean(repeated) < 0.1
    dynamic = opened(path, cache_dir, masking="dynamic")
    rows = [{r["targets"].tobytes(): r["loss_weights"] for r in map(dynamic.train.__getitem__, range(s, s + length))}
            for s in range(0, 5 * length, length)]  # fmt: skip
    assert all(set(r) == set(first) for r in rows)
    for later in rows[1:]:
        assert np.mean([np.array_equal(rows[0][key], later[key]) for key in first]) < 0.1


@pytest.mark.parametrize("dynamic", [False, True])
def test_epochs_take_one_layout_after_another(dynamic):
    row = lambda start: {"tokens": np.array([CLS, *range(start, start + 40), SEP], np.int32)}
    layouts = [[row(start + 40 * i) for i in range(count)] for start, count in ((100, 5), (1100, 3), (2100, 4))]
    masker = Masker(42, 6, 0.15, MASK, SPECIALS, 6000, PAD)
    stream = MaskedStream(layouts, masker, ["seed"], dynamic)
    epochs, start = [], 0
    for epoch in range(6):
        layout = layouts[epoch % 3]
        rows = [stream[i] for i in range(start, start + len(layout))]
        assert sorted(row["targets"].tolist() for row in rows) == [row["tokens"].tolist() for row in layout]
        epochs.append({row["targets"].tobytes(): row["tokens"].tobytes() for row in rows})
        start += len(layout)
    for epoch in range(3):
        again = epochs[epoch + 3]
        assert all((again[key] == masked) != dynamic for key, masked in epochs[epoch].items())


@pytest.mark.parametrize("fields", [BERT, dict(masking="dynamic"), BERT | dict(masking="dynamic")])
def test_rows_are_functions_of_config_seed_and_index(path, cache_dir, tmp_path, fields):
    data = opened(path, cache_dir, **fields)
    rows = [data.train[i] for i in range(30)]
    again = opened(path, tmp_path, **fields)  # prepared anew
    assert all(same(again.train[i], rows[i]) for i in reversed(range(30)))
    assert same(data.train[17], rows[17]) and data.train[10**12]["tokens"].shape == (32,)
    other = opened(path, cache_dir, seed=1, **fields)
    assert sum(same(other.train[i], rows[i]) for i in range(30)) < 3
    assert all(same(other.evaluation["heldout"][i], data.evaluation["heldout"][i]) for i in range(3))
    batch = next(Loader(data.train, 4, start_step=5, num_threads=0))  # resumed at step 5
    np.testing.assert_array_equal(batch["tokens"], [rows[i]["tokens"] for i in range(20, 24)])


def test_rows_are_the_same_on_every_machine(path, cache_dir):
    digest = hashlib.blake2b(digest_size=8)
    for fields in (BERT, dict(masking="dynamic")):
        data = opened(path, cache_dir, **fields)
        for i in (0, 7, 1000):
            digest.update(b"".join(data.train[i][name].tobytes() for name in sorted(data.train[i])))
    assert digest.hexdigest() == "f9d0620536bff021"


def test_mixture(path, cache_dir, tmp_path):
    other = write_documents(tmp_path / "other.jsonl", [[[5000] * 8] * 9] * 30)
    mixture = {"a": {"source": path, "weight": 3}, "b": {"source": other, "weight": 1}}
    data = opened(None, cache_dir, source=None, heldout_fraction=None, mixture=mixture)
    share = np.mean([data.train[i]["targets"][1] == 5000 for i in range(400)])
    assert abs(share - 0.25) < 0.01


def test_the_handed_out_object(path, cache_dir):
    data = opened(path, cache_dir, **BERT)
    assert data.model_fields == {"vocab_size": 6000} and set(data.evaluation) == {"heldout"}

    class Module:
        vocab_size, max_length, num_token_types = 6000, 32, 2

    data.check(Module)
    Module.num_token_types = 1
    with pytest.raises(ConfigError, match="num_token_types is 1, but data.next_sentence"):
        data.check(Module)


def test_a_tokenizer_trained_for_masked_text_has_a_mask_that_no_text_spells(texts):
    import sentencepiece

    model = tokenizer_training.train_sentencepiece(iter(texts), 320, specials=MaskedTextData.TRAINED_SPECIALS)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    mask = processor.piece_to_id("<mask>")
    assert mask == 3 and processor.is_control(mask) and mask not in processor.encode("a <mask> b")


def test_refused(path, cache_dir, tmp_path, monkeypatch):
    fits = dict(source=path, sequence_length=32)
    for fields, message in (
        (dict(sentences="sentence"), "data.sentences='sentence' is not known"),
        (dict(sentences="ignore", next_sentence=True), "leaves no sentences"),
        (dict(masking="sometimes"), "data.masking"),
        (dict(sequence_length=2), "at least 3"),
        (dict(sequence_length=4, next_sentence=True), "at least 5"),
        (dict(mask_rate=0.0), "data.mask_rate"),
        (dict(max_predictions=0), "data.max_predictions"),
        (dict(short_sequence_rate=0.1), "short_sequence_rate is never read"),
        (dict(short_sequence_rate=2.0, next_sentence=True), "short_sequence_rate"),
        (dict(duplicates=3), "duplicates is never read"),
    ):
        with pytest.raises(ConfigError, match=message):
            MaskedTextData(**fits | fields)
    one = write_documents(tmp_path / "one.jsonl", DOCUMENTS[:1])
    with pytest.raises(DataError, match="only one train document"):
        opened(one, cache_dir, heldout_fraction=0.0, **BERT)
    with pytest.raises(ConfigError, match="tokenizer 'bytes' has no mask token"):
        opened(path, cache_dir, tokenizer="bytes")
    monkeypatch.setattr(NumberTokenizer, "sep_id", None)
    with pytest.raises(ConfigError, match="no token that ends a row"):
        opened(path, cache_dir)
