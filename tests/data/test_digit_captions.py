"""Digits with captions: what is held out, and rows that are a pure function of the index."""

import numpy as np
import pytest

from fmjax.data.digit_captions import WORDS, DigitCaptions
from fmjax.data.digits import read_digits
from fmjax.errors import ConfigError


def texts_of(data, rows):
    decode = data.tokenizer.decode
    return [decode(row["tokens"][row["segment_ids"] == 1].tolist()) for row in rows]


def test_captions_name_the_digit_in_words_that_are_not_those_held_out(tmp_path):
    data = DigitCaptions().open(seed=0, cache_dir=tmp_path)
    images, labels, test = read_digits()
    rows = {"train": [data.train[i] for i in range(200)]} | {name: list(part) for name, part in data.evaluation.items()}
    assert set(rows) == {"train", "test", "templates"}
    for name, found in rows.items():
        texts = texts_of(data, found)
        assert all(text.endswith(WORDS[int(row["labels"])]) for text, row in zip(texts, found))
        assert {text.startswith("a photo of a handwritten") for text in texts} == {name == "templates"}
        assert len({text.rpartition(" ")[0] for text in texts}) == (1 if name == "templates" else 4)
        if name != "train":
            np.testing.assert_allclose([row["images"] for row in found], images[test], atol=1 / 127)
            assert [int(row["labels"]) for row in found] == labels[test].tolist()
            assert data.documents(name) == texts
    again = DigitCaptions().open(seed=0, cache_dir=tmp_path)
    for index in (150, 0):
        for key, value in again.train[index].items():
            np.testing.assert_array_equal(value, rows["train"][index][key])
    assert {k: v for k, v in data.model_fields.items()} == {
        "image_size": 8, "num_channels": 1, "vocab_size": 258, "max_length": 32,
    }  # fmt: skip


def test_fields_are_checked():
    for fields, message in [
        ({"heldout_templates": 5}, "heldout_templates = 5 must be from 0 to 4"),
        ({"max_shift": 8}, "max_shift = 8 must be from 0 to 7"),
        ({"overlong": "drop"}, "data.overlong='drop' is not known"),
    ]:
        with pytest.raises(ConfigError, match=message):
            DigitCaptions(**fields)
