"""Prompts: one a row, whole, in an order that the seed tells."""

import numpy as np
import pytest

from fmjax.data.prompts import PromptData, digit_strings
from fmjax.errors import ConfigError, DataError


def opened(tmp_path, seed=0, **fields):
    fields = {"tokenizer": "bytes", "sequence_length": 12, "document_separator": "\n", "heldout_fraction": 0.2} | fields
    (tmp_path / "prompts.txt").write_text("\n".join(f"question {n}" for n in range(100)))
    return PromptData(source=str(tmp_path / "prompts.txt"), **fields).open(seed=seed, cache_dir=tmp_path / "cache")


def texts(data, rows):
    return [data.tokenizer.decode(row["tokens"][: row["lengths"]].tolist()) for row in rows]


def test_each_epoch_has_every_prompt_once_and_none_is_held_out_too(tmp_path):
    data = opened(tmp_path)
    held = texts(data, [data.evaluation["heldout"][i] for i in range(len(data.evaluation["heldout"]))])
    count = 100 - len(held)
    epoch = texts(data, [data.train[i] for i in range(count)])
    assert 5 < len(held) < 40 and sorted(held + epoch) == sorted(f"question {n}" for n in range(100))
    assert epoch != texts(data, [data.train[i] for i in range(count, 2 * count)])
    assert epoch == texts(opened(tmp_path), [opened(tmp_path).train[i] for i in range(count)])
    row = data.train[3]
    assert row["tokens"].shape == (12,) and row["tokens"][0] == data.tokenizer.bos_id
    assert not row["tokens"][row["lengths"] :].any() and row["tokens"].dtype == row["lengths"].dtype == np.int32
    example = PromptData(source="x", sequence_length=12).example
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {k: (v.shape, v.dtype) for k, v in row.items()}


def test_prompts_are_never_cut(tmp_path):
    with pytest.raises(DataError, match="has 12 tokens, more than data.sequence_length = 11"):
        opened(tmp_path, sequence_length=11)
    with pytest.raises(ConfigError, match="100 prompts, too few to hold a share of them out"):
        PromptData(source="tests.data.test_prompts:digits", heldout_fraction=0.001).open(seed=0, cache_dir=tmp_path)


def digits():
    return digit_strings(2)


def test_strings_of_digits():
    assert digit_strings(1) == [f"{n}=" for n in range(10)] and len(digit_strings()) == 1000
