"""Runs that make their own rows: where they may be left, what is refused, and what speed counts."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import losses

from fmjax import config as configs
from fmjax.checkpoint_files import complete_steps
from fmjax.objectives.causal_lm import CausalLM
from fmjax.training import loop
from fmjax.training.experience import Experience, RolloutError
from fmjax.training.metrics import read_metrics
from fmjax.training.stopping import Stop

pytestmark = pytest.mark.usefixtures("one_device")


@dataclasses.dataclass(frozen=True)
class Halves(CausalLM):
    """Trains on the first half of the rows that it is given."""

    rollout_steps: int = 2

    def num_prompts(self, rows):
        return rows

    def collect(self, model, prompts, key):
        return {name: array[:, :8] for name, array in prompts.items()}

    def collected(self, prompt):
        return {name: jax.ShapeDtypeStruct((8,), array.dtype) for name, array in prompt.items()}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("train", "validation"):
        (tmp_path / "text" / f"{name}.txt").write_text(f"{name} " + "the cat sees a red bird and the old dog " * 40)
    config = configs.resolve({
        "train": {"steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "sample_every": 1,
                  "tensorboard": False},
        "model": {"name": "llama", "num_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
                  "max_length": 32, "vocab_size": 264},
        "objective": {"name": f"{__name__}:Halves", "sample_prompts": ("the",), "sample_tokens": 2},
        "data": {"source": str(tmp_path / "text"), "sequence_length": 16, "tokenizer": "bytes"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip
    return lambda name: loop.train(config, tmp_path / name, cache_dir=tmp_path, progress=False)


def test_a_signal_inside_a_rollout_ends_the_run_where_it_can_be_resumed(run, tmp_path, monkeypatch):
    run("straight")
    pause = loop.Run._pause

    def signalled(self):
        if self.step == 1:
            self.stop.set()
        pause(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_pause", signalled)
        assert run("stopped")["stopped"] == 1.0
    assert complete_steps(tmp_path / "stopped" / "checkpoints") == [2]
    run("stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")


def test_processes_agree_on_the_end_of_a_rollout(run, tmp_path, monkeypatch):
    # As the service of JAX has it: true at one step alone.
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", lambda step: step == 1)
    agreed = Stop.agreed

    def with_others(self, step):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 2)
            return agreed(self, step)

    monkeypatch.setattr(Stop, "agreed", with_others)
    assert run("stopped")["stopped"] == 1.0
    assert complete_steps(tmp_path / "stopped" / "checkpoints") == [2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_is_found_in_every_float_type(dtype):
    program = types.SimpleNamespace(objective=Halves(), row={"rewards": jax.ShapeDtypeStruct((2,), dtype)})
    experience = Experience(program, [], 2, [0, 1])
    with pytest.raises(RolloutError, match="objective Halves: 'rewards' of row 1 of the rollout is not finite"):
        experience._checked({"rewards": np.array([[0, 1], [np.nan, 0]], jnp.dtype(dtype))}, 2)


def test_speed_counts_the_tokens_of_the_rows_that_are_trained_on(run, tmp_path):
    run("straight")
    rows = [row for row in read_metrics(tmp_path / "straight" / "metrics.jsonl") if "perf/tokens_per_second" in row]
    for row in rows:
        np.testing.assert_allclose(row["perf/tokens_per_second"] / row["perf/examples_per_second"], 8)
    assert rows
