"""Merging models against PEFT's task vectors and formulas, and by the command."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from small_models import byte_model, stirred

import fmjax
from fmjax.adapt import merging
from fmjax.commands.merge import main, parse
from fmjax.errors import InputError


@pytest.fixture(scope="module")
def oracle():
    with np.load(pathlib.Path(__file__).parents[1] / "oracles" / "merging.npz") as stored:
        return dict(stored)


def cut(vector):
    """A model of two arrays."""
    return {"a": vector[:10].reshape(2, 5), "b": vector[10:]}


def joined(model):
    return np.concatenate([model["a"].reshape(-1), model["b"]])


def test_task_vectors_are_those_of_peft(oracle):
    base = np.linspace(-1, 1, 40).astype(np.float32)
    models, weights = [cut(base + vector) for vector in oracle["vectors"]], oracle["weights"]
    found = merging.task_arithmetic(cut(base), models, weights)
    np.testing.assert_allclose(joined(found) - base, oracle["task_arithmetic"], atol=1e-5)
    for name, given in (("ties", None), ("ties_weighted", weights)):
        found = merging.ties(cut(base), models, given, density=0.3, scale=0.5)
        np.testing.assert_allclose(joined(found) - base, oracle[name] / 2, atol=1e-5)
    found = merging.average(models, weights)
    np.testing.assert_allclose(joined(found), base + weights @ oracle["vectors"] / weights.sum(), atol=1e-5)


def test_slerp_goes_along_the_arc_of_each_layer():
    x, y = {"blocks/w": np.float32([[1, 0], [0, 2]])}, {"blocks/w": np.float32([[0, 1], [0, 4]])}
    found = merging.slerp(x, y, 1 / 3, lambda name: "blocks" in name)["blocks/w"]
    np.testing.assert_allclose(found, [[np.cos(np.pi / 6), np.sin(np.pi / 6)], [0, 8 / 3]], atol=1e-6)
    whole = merging.slerp(x, y, 0.5)["blocks/w"]
    angle = np.arccos(8 / np.sqrt(5 * 17))
    np.testing.assert_allclose(whole, (x["blocks/w"] + y["blocks/w"]) / (2 * np.cos(angle / 2)), atol=1e-6)


def test_what_cannot_be_merged_is_refused_by_name(oracle):
    model = cut(oracle["vectors"][0])
    with pytest.raises(InputError, match=r"'b' is \(30,\) in model 1, \(29,\) in model 2"):
        merging.average([model, model | {"b": model["b"][1:]}])
    with pytest.raises(InputError, match=r"'c' is no such array in model 1, \(5,\) in model 2"):
        merging.task_arithmetic(model, [model | {"c": model["a"][0]}])
    with pytest.raises(InputError, match="'n' holds integers, which differ"):
        merging.average([{"n": np.arange(3)}, {"n": np.arange(3) + 1}])
    with pytest.raises(InputError, match="density = 0 must be above 0"):
        merging.ties(model, [model], density=0)
    with pytest.raises(InputError, match="add up to 0"):
        merging.average([model, model], [1, -1])


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--method=ties --model=a --model=b", "give --base"),
        ("--method=average --model=a --model=b --base=c", "--base has no meaning with --method=average"),
        ("--method=slerp --model=a", "takes two --model, got 1"),
        ("--method=average --model=a --model=b --weight=1", "1 --weight for 2 --model"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        parse([*flags.split(), "--output=o"])


def test_the_command_writes_a_model_and_refuses_unlike_ones(tmp_path):
    model = byte_model()
    other = dataclasses.replace(model, params=stirred(model.params))
    model.save(tmp_path / "a")
    other.save(tmp_path / "b", format="hf")
    merge = lambda *names, out: main(
        [*(f"--model={tmp_path / name}" for name in names), "--method=average", f"--output={tmp_path / out}"]
    )
    merge("a", "b", out="c")
    found = fmjax.load(tmp_path / "c").params
    close = lambda x, y, z: np.testing.assert_allclose(z, (np.asarray(x) + np.asarray(y)) / 2, atol=1e-6)
    jax.tree.map(close, model.params, other.params, found)
    byte_model(max_length=32).save(tmp_path / "d")
    with pytest.raises(InputError, match=r"'position_embedding/embedding' is \(64, 16\) in .*a, \(32, 16\) in .*d"):
        merge("a", "d", out="e")
    assert not (tmp_path / "e").exists()
