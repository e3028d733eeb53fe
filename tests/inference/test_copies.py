"""Copies are counted on, made in full batches or alone, and refused where they are not finite; captions that are too
long are refused in one text."""

import contextlib
import types

import numpy as np
import pytest

from fmjax.commands import values
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError, RunError
from fmjax.inference import copies
from fmjax.inference.denoising import Denoising
from fmjax.inference.drawn_codes import DrawnCodes
from fmjax.inference.prompts import caption_row
from fmjax.inference.unmasked_images import UnmaskedImages

CODEC = types.SimpleNamespace(array="numbers", decode=lambda arrays: arrays["numbers"].tolist())


def made(identities, only=None, shards=None, spoiled=(), **options):
    """(values, places and numbers of each call)."""
    placement = types.SimpleNamespace(num_row_shards=shards, scoring=contextlib.nullcontext) if shards else None
    model = types.SimpleNamespace(placement=placement, inference=contextlib.nullcontext)
    calls = []

    def program(places, numbers):
        calls.append(list(zip(places.tolist(), numbers.tolist())))
        rows = np.stack([places, numbers], axis=1).astype(np.float32)
        return np.where([[job in spoiled] for job in calls[-1]], np.nan, rows)

    options = types.SimpleNamespace(**{"num_samples": 2, "batch_size": 3} | options)
    return list(copies.made(model, CODEC, identities, options, program, only)), calls


def test_copies_of_equal_prompts_are_counted_on_and_batches_are_filled_up():
    found, calls = made(["a", "b", "a"])
    assert found == [(0, [0, 0]), (1, [0, 1]), (2, [1, 0]), (3, [1, 1]), (4, [2, 2]), (5, [2, 3])]
    assert calls == [[(0, 0), (0, 1), (1, 0)], [(1, 1), (2, 2), (2, 3)]]
    assert made(["a", "b", "a"], only={1, 5, 3, 4}) == (
        [found[1], found[3], found[4], found[5]], [[(0, 1), (1, 1), (2, 2)], [(2, 3)] * 3],
    )  # fmt: skip
    assert made(["a"], shards=4, batch_size=1)[1] == [[(0, 0), (0, 1), (0, 1), (0, 1)]]
    assert made([]) == made(["a"], only=()) == ([], [])


def test_a_value_that_is_not_finite_is_named_unless_it_only_fills_up():
    with pytest.raises(RunError, match="value 3 of .* is not finite; nothing is written"):
        made(["a", "b"], spoiled=[(1, 1)])
    assert len(made(["a", "b"], only={0}, spoiled=[(1, 1)])[0]) == 1


def test_captions_that_are_not_read_are_refused():
    model = types.SimpleNamespace(tokenizer=ByteTokenizer())
    row = caption_row(model, "red", 6)
    np.testing.assert_array_equal(row["segment_ids"], (np.arange(6) < len(model.tokenizer.encode_pair("red")[0])))
    for caption, message in [
        (3, "is a caption, got 3"), (None, "is a caption, got None"), (" ", "a prompt is empty"),
        ("a red circle", r"prompt 'a red circle' has \d+ tokens, more than the 6 that .* reads; shorten it"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            caption_row(model, caption, 6)


@pytest.mark.parametrize("kind", [Denoising, DrawnCodes, UnmaskedImages])
def test_a_file_of_prompts_makes_a_folder(kind, tmp_path):
    flags, _ = values.parse(["--model=run", "--prompts=prompts.jsonl", f"--output={tmp_path}"], kind)
    assert flags.prompts == "prompts.jsonl"
