"""`python -m fmjax.compress`: what comes out is a model of few bits, which other commands take."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import fmjax
from fmjax.compress import METHODS
from fmjax.compress import __main__ as command
from fmjax.commands import cli
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import merged
from tests.small_models import byte_model


def run(*argv) -> int:
    return cli.run(command.main, list(map(str, argv)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "whole"
    byte_model().save(path)
    return path


def kernels(model) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(model.params, is_leaf=lambda x: isinstance(x, QTensor))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves if isinstance(x, QTensor)}


@pytest.mark.parametrize(
    "method, options, format, block",
    [
        ("int8", (), "int8", None), ("int4", ("--block=16", "--double=true"), "int4", 16),
        ("nf4", ("--block=8", "--keep=mlp/down", "--keep=attention/out"), "nf4", 8),
        ("fp8", ("--tile=0",), "fp8", None),
        ("mxfp4", ("--block=16", "--rounding=even", "--tables=true"), "fp4", 16),
    ],
)  # fmt: skip
def test_a_compressed_model_is_a_model(method, options, format, block, folder, tmp_path, capsys):
    out = tmp_path / "few"
    assert run(f"--model={folder}", f"--method={method}", f"--output={out}", *options) == 0
    told = capsys.readouterr().out
    assert "bytes before" in told and "bits a weight" in told and str(out) in told
    before, after = fmjax.load(folder), fmjax.load(out)
    found = kernels(after)
    assert len(found) == {"nf4": 4, "mxfp4": 7}.get(method, 6) and {x.format for x in found.values()} == {format}
    if method != "mxfp4":
        assert all(x.block == (block or x.shape[-2]) for x in found.values())
    kept = json.loads((out / "config.json").read_text())["compression"]
    assert kept["method"] == method and kept["of"] == str(folder)
    assert repr(after) == repr(before).replace(str(folder), str(out))  # as many numbers
    tokens = np.arange(24).reshape(2, 12) * 9
    logits = after.apply(tokens)
    expected = dataclasses.replace(after, params=merged(after.params), kept={}).apply(tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert 0 < np.abs(np.asarray(logits) - np.asarray(before.apply(tokens))).max() < 3
    assert after.generate(["ab"], max_new_tokens=4, temperature=0) == after.generate(
        ["ab"], max_new_tokens=4, temperature=0
    )
    is_packed = lambda x: isinstance(x, QTensor)
    rounding = lambda x: x.replace(activations="int8") if is_packed(x) else x
    other = dataclasses.replace(after, params=jax.tree.map(rounding, after.params, is_leaf=is_packed))
    assert len({model_fingerprint(one) for one in (before, after, other)}) == 3
    half = fmjax.load(out, dtype="bfloat16")
    assert jax.tree.structure(half.params) == jax.tree.structure(after.params)
    jax.tree.map(np.testing.assert_array_equal, kernels(half), found)


def test_unknown_methods_and_options_are_named(folder, tmp_path, capsys):
    out = tmp_path / "few"
    for argv, message in (
        (["--method=int9"], "unknown method of compression 'int9'; did you mean 'int8'"),
        (["--method=int4", "--blok=4"], "unknown flag '--blok'; did you mean '--block'"),
        (["--method=int4", "--block=5"], "block = 5 must be even"),
        (["--method=int4", "--block=12"], "cannot be cut into blocks of 12"),
        (["--method=int8", "--patterns=mpl"], "patterns: 'mpl' is found in no kernel"),
        (["--method=int8", "--keep=nothing"], "keep: 'nothing' is found in no parameter"),
        (["--method=int8", "--keep=kernel"], "leave nothing of Model("),
        (["--method=int8", "--calibration=x"], "unknown flag '--calibration'"),
    ):
        assert run(f"--model={folder}", f"--output={out}", *argv) == 2
        assert message in capsys.readouterr().err and not out.exists()
    assert run(f"--model={folder}", "--method=int8", f"--output={folder}") == 2
    assert "already holds a model" in capsys.readouterr().err


def test_what_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fmjax.checkpoint_files.save_params", full)
    with pytest.raises(OSError, match="No space"):
        run(f"--model={folder}", "--method=int8", f"--output={tmp_path / 'few'}")
    assert not list(tmp_path.iterdir())


def test_what_is_of_few_bits_is_not_compressed_again(folder, tmp_path, capsys):
    model = METHODS.get("int8")().compress(fmjax.load(folder))
    model.save(tmp_path / "few")
    assert run(f"--model={tmp_path / 'few'}", "--method=int4", f"--output={tmp_path / 'fewer'}") == 2
    assert "is of int8 already" in capsys.readouterr().err
