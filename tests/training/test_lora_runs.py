"""Runs of adapters: averaged, begun with a model, written for others."""

import jax
import numpy as np
import pytest
from small_models import byte_model

import fmjax
from fmjax import config as configs
from fmjax.checkpoint_files import load_params
from fmjax.convert import main as convert
from fmjax.interop.loading import model_section
from fmjax.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the published folder that a run of adapters began with, its workdir)."""
    folder = tmp_path_factory.mktemp("lora")
    base = folder / "base"
    byte_model().save(base, format="hf")
    (folder / "text.txt").write_text("A rose is a rose is a rose.\n" * 200)
    config = configs.resolve({
        "train": {
            "steps": 4, "batch_size": 8, "init_from": str(base), "ema_decay": 0.5, "sample_every": 2,
        },
        "mesh": {"data": -1},
        "model": model_section(str(base)),
        "weights": {"name": "lora", "rank": 4, "patterns": ("kernel$",)},
        "objective": {"name": "causal_lm", "sample_tokens": 4},
        "data": {"source": str(folder / "text.txt"), "sequence_length": 16},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip
    train(config, folder / "run", cache_dir=folder / "cache", progress=False)
    return base, folder / "run"


def test_a_run_begins_with_published_kernels_which_stay_and_loads_as_its_average(run):
    base, workdir = run
    model, begun = fmjax.load(workdir), fmjax.load(base)
    kernel = lambda tree: tree["stack"]["blocks"]["mlp"]["up"]["kernel"]
    saved, average = (load_params(workdir, which=which)[0] for which in ("params", "ema"))
    np.testing.assert_array_equal(kernel(saved)["base"], kernel(begun.params))
    jax.tree.map(np.testing.assert_array_equal, saved["token_embedding"], begun.params["token_embedding"])
    a, b = kernel(average)["a"], kernel(average)["b"]
    assert not np.array_equal(b, kernel(saved)["b"])
    np.testing.assert_allclose(kernel(model.params), kernel(begun.params) + 16.0 / 4 * (a @ b), atol=1e-6)
    assert np.max(np.abs(a @ b)) > 1e-3
    assert (workdir / "samples.txt").read_text()


def test_what_others_read_of_a_run_of_adapters_is_merged(run, tmp_path):
    _, workdir = run
    convert([f"--input={workdir}", f"--output={tmp_path / 'hf'}", "--to=hf"])
    convert([f"--input={workdir}", f"--output={tmp_path / 'own'}", "--to=fmjax"])
    tokens = np.random.default_rng(0).integers(0, 256, (1, 8)).astype(np.int32)
    expected = fmjax.load(workdir).apply(tokens)
    for name in ("hf", "own"):
        np.testing.assert_allclose(fmjax.load(tmp_path / name).apply(tokens), expected, atol=1e-5)
