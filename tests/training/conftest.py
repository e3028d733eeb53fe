"""Runs of the real command, in processes of their own or in this one."""

import contextlib
import io
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from fmjax import cpu
from fmjax import train as command_module
from fmjax.commands import cli

REPOSITORY = pathlib.Path(__file__).parents[2]

CONFIG = """
def get_config():
    return {{
        "seed": 3,
        "train": {{"steps": 40, "batch_size": 8, "log_every": 1, "checkpoint_every": 5, "keep_last": 3,
                  "eval_batches": 2,
                  "eval_every": 10, "sample_every": 10, "tensorboard": False}},
        "model": {{"name": "llama", "num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4,
                  "num_kv_heads": 2, "max_length": 64, "vocab_size": 264}},
        "objective": {{"name": "causal_lm", "sample_prompts": ("", "the cat"), "sample_tokens": 16}},
        "data": {{"source": "{source}", "sequence_length": 64, "tokenizer": "bytes", "heldout_fraction": 0.1}},
        "optimizer": {{"name": "adamw", "learning_rate": 3e-3, "schedule": {{"name": "cosine", "warmup_steps": 5}}}},
    }}
"""


class Command:
    """`python -m fmjax.train` on a small text of made-up sentences."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        words = "the a one some every no cat dog bird fish sees hears likes red green old new and then of with".split()
        rng = random.Random(0)
        (folder / "text").mkdir()
        for number in range(60):
            text = " ".join(rng.choice(words) for _ in range(rng.randint(20, 200)))
            (folder / "text" / f"{number}.txt").write_text(text)
        (folder / "config.py").write_text(CONFIG.format(source=folder / "text"))

    def start(self, workdir, *flags, devices: int = 1) -> subprocess.Popen:
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "FMJAX_CACHE": str(self.folder / "cache")}
        command = [
            sys.executable,
            "-m",
            "fmjax.train",
            f"--config={self.folder}/config.py",
            f"--workdir={workdir}",
            *flags,
        ]
        return subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def call(self, workdir, *flags, devices: int = 1) -> tuple[int, str]:
        """(exit code, everything printed to stderr), in this process, which need not import everything anew."""
        printed, asyncio, everything = io.StringIO(), logging.getLogger("asyncio"), jax.devices
        level = asyncio.level
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
            patch.setattr(jax, "devices", lambda *a: everything(*a)[:devices])
            patch.setattr(cpu, "set_up_training", lambda: None)  # for a process that does nothing else
            patch.setenv("FMJAX_CACHE", str(self.folder / "cache"))
            code = cli.run(command_module.main, [f"--config={self.folder}/config.py", f"--workdir={workdir}", *flags])
        asyncio.setLevel(level)
        return code, printed.getvalue()

    def kill_when(self, workdir, condition, with_signal=signal.SIGKILL, *flags, devices: int = 1) -> tuple[int, str]:
        """Starts the command and sends the signal as soon as `condition()` holds."""
        process = self.start(workdir, *flags, devices=devices)
        deadline = time.time() + 120
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            assert time.time() < deadline
            time.sleep(0.002)
        process.send_signal(with_signal)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """Step to logged training loss; asserts that no step is logged twice."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def evaluations(workdir: pathlib.Path) -> list[dict]:
    """The rows of evaluations, in the order they were written."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/loss" in row]


def last_logged(workdir: pathlib.Path) -> int:
    """The newest step in metrics.jsonl, 0 where there is none; torn lines are passed over."""
    from fmjax.training.metrics import read_metrics

    return max((row["step"] for row in read_metrics(workdir / "metrics.jsonl") if "train/loss" in row), default=0)


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    return Command(tmp_path_factory.mktemp("command"))


@pytest.fixture(scope="session")
def straight(command):
    """The workdir of a run that nothing disturbed."""
    workdir = command.folder / "straight"
    code, output = command.call(workdir)
    assert code == 0, output
    return workdir
