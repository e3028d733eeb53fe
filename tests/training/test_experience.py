"""A run that makes its own rows: killed at any moment, in parts, in two processes it is the same."""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from fmjax import config as configs
from fmjax.checkpoint_files import complete_steps, read_item
from fmjax.errors import ConfigError
from fmjax.training.loop import train
from tests import processes

pytestmark = pytest.mark.usefixtures("one_device")

REPOSITORY = pathlib.Path(__file__).parents[2]
SHORT = {
    "train.steps": "8", "train.batch_size": "16", "train.log_every": "1", "train.checkpoint_every": "2",
    "train.keep_last": "9", "train.eval_every": "4", "train.eval_batches": "1", "train.tensorboard": "false",
    "model.hidden_size": "16", "model.intermediate_size": "32", "model.num_heads": "2", "objective.num_samples": "4",
    "objective.rollout_steps": "2", "objective.reward": "tests.training.killed:small_letters",
    "objective.decode_rows": "32",
}  # fmt: skip
FLAGS = [f"--config.{key}={value}" for key, value in SHORT.items()]


def config(**more):
    plain = configs.load_config_file(str(REPOSITORY / "configs" / "reinforce_tiny.py"))
    return configs.resolve(configs.apply_overrides(plain, SHORT | more))


def state(workdir):
    items = {n: read_item(workdir.absolute() / "checkpoints" / "8" / n) for n in ("params", "train")}
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_flatten_with_path(items)[0]}


def logged(workdir, *names):
    """Rows of these metrics, in the order they were written; asserts that none is there twice."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [(row["step"], *(row[name] for name in names)) for row in rows if names[0] in row]
    assert len({row[0] for row in rows}) == len(rows)
    return rows


LEARNT = ("train/loss", "train/reward", "train/entropy", "train/grad_norm", "train/logprob_difference")


@pytest.fixture(scope="module")
def straight(one_device, tmp_path_factory):
    """A run from beginning to end, on one device."""
    workdir = tmp_path_factory.mktemp("experience") / "run"
    train(config(), workdir, cache_dir=workdir.parent, progress=False)
    return workdir


def test_the_trainer_finds_the_log_probabilities_that_the_rollout_kept(straight):
    rows = logged(straight, "train/logprob_difference", "train/sampler_difference", "train/loss")
    assert [step for step, *_ in rows] == list(range(1, 9))
    for step, difference, sampler, loss in rows:
        if step % 2:  # the first of a rollout: the parameters are those that made it
            assert difference == 0.0 and sampler < 1e-5
        else:
            assert difference > 1e-5
        assert abs(loss) > 1e-4
    collected = logged(straight, "perf/collect_seconds")
    assert [step for step, _ in collected] == [3, 5, 7] and all(seconds > 0 for _, seconds in collected)
    assert [step for step, _ in logged(straight, "eval/reward")] == [4, 8]


def run(workdir, moment, step):
    command = [sys.executable, "-m", "tests.training.killed", moment, str(step), "--config=configs/reinforce_tiny.py"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [*command, f"--workdir={workdir}", *FLAGS], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


def test_killed_in_a_rollout_and_during_an_update_it_goes_on_bitwise(straight, tmp_path, caplog):
    workdir = tmp_path / "run"
    for moment, step in [("rollout", 2), ("during", 5)]:
        done = run(workdir, moment, step)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = run(workdir, "asked", 4)
    stopped = complete_steps(workdir / "checkpoints")[-1]
    assert done.returncode == 0 and f"saved at step {stopped} of 8" in done.stderr and stopped in (4, 6), done.stderr
    with caplog.at_level(logging.INFO, "fmjax"):
        train(config(), workdir, cache_dir=tmp_path, progress=False)
    assert f"at step {stopped} of 8" in caplog.text
    assert logged(workdir, *LEARNT) == logged(straight, *LEARNT)
    assert logged(workdir, "eval/reward") == logged(straight, "eval/reward")
    ours, theirs = state(workdir), state(straight)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def assert_close(workdir, straight):
    found, wanted = (np.array(logged(folder, *LEARNT[:4])) for folder in (workdir, straight))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_in_parts_it_learns_the_same(straight, tmp_path):
    quiet = {"train.accumulate_steps": "2", "train.eval_every": "-1", "train.sample_every": "-1"}
    train(config(**quiet), tmp_path / "parts", cache_dir=tmp_path, progress=False)
    assert_close(tmp_path / "parts", straight)
    assert {row[1] for row in logged(tmp_path / "parts", "train/logprob_difference") if row[0] % 2} == {0.0}


def test_two_processes_of_two_devices_learn_the_same(straight, tmp_path):
    flags = ["--config=configs/reinforce_tiny.py", f"--workdir={tmp_path / 'run'}", *FLAGS]
    flags += [f"--config.mesh.{axis}=2" for axis in ("data", "tensor")]
    flags += [f"--config.train.{name}_every=-1" for name in ("eval", "sample")]
    processes.run("fmjax.train", [flags] * 2, 2, tmp_path / "cache")
    assert_close(tmp_path / "run", straight)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train.steps", "7", "train.steps = 7 is not a multiple of objective.rollout_steps = 2"),
        ("train.checkpoint_every", "3", "train.checkpoint_every = 3 is not a multiple of objective.rollout_steps = 2"),
        ("objective.num_samples", "3", "train.batch_size = 16 is not divisible by objective.num_samples = 3"),
        ("objective.max_new_tokens", "12", "more than model.max_length = 16"),
        ("data.name", "text", "needs prompts, rows with tokens and lengths"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_the_first_step(tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=message):
        more = {"data.source": str(REPOSITORY / "README.md")} if key == "data.name" else {}
        train(config(**{key: value}, **more), tmp_path / "run", cache_dir=tmp_path, progress=False)
