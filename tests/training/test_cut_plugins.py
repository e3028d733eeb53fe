"""Runs with more than parameters and a loss, cut, end as if nothing had happened."""

import shutil

import jax
import numpy as np
from conftest import losses
from small_models import byte_model

from fmjax.checkpoint_files import read_item
from fmjax.data.tokenizers.loading import ByteTokenizer

FLAGS = (
    "--config.weights.name=lora", "--config.weights.rank=4", "--config.train.ema_decay=0.9",
    "--config.objective.name=distillation", f"--config.model.vocab_size={ByteTokenizer().vocab_size}",
)  # fmt: skip
QUIET = (
    "--config.train.steps=24", "--config.train.eval_every=-1", "--config.train.sample_every=-1",
)  # fmt: skip


def arrays(workdir, step):
    """Every array of a checkpoint, by path, as numpy."""
    folder = workdir.absolute() / "checkpoints" / str(step)
    items = {name: read_item(folder / name) for name in ("params", "train", "ema") if (folder / name).is_dir()}
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_flatten_with_path(items)[0]}


def test_cut_a_run_with_adapters_and_a_teacher_ends_bitwise_the_same(command):
    byte_model(ByteTokenizer()).save(command.folder / "teacher")
    flags = (*QUIET, *FLAGS, f"--config.objective.teacher={command.folder / 'teacher'}")
    straight, workdir = command.folder / "plugins_straight", command.folder / "plugins_cut"
    code, output = command.call(straight, *flags)
    assert code == 0, output
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "24")
    code, output = command.call(workdir, *flags)
    assert code == 0 and "resuming" in output, output
    assert losses(workdir) == losses(straight)
    ours, theirs = arrays(workdir, 24), arrays(straight, 24)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
