"""What training with real data costs besides the step: start, input, checkpoints.

The training command is run as a user would; the pipeline and the saves are also timed alone, in a process each.
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from shapes import SHAPES
from sides import Fmjax, train_config

CONFIG = """import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads({text!r}))
"""


def whole_run(name: str, folder: str, scratch: pathlib.Path, steps: int, environment: dict) -> dict:
    """Everything this module measures of a shape, its weights in `folder`.

    Returns:
      first_step_seconds: from the start of the command to the end of its first step: with empty caches (the text is
        read, a tokenizer trained, the text tokenised, everything compiled), with only the data prepared, with
        everything prepared.
      tokens_per_second, mfu, input_wait_share: of the last of these runs, which also saves a checkpoint half way.
      pipeline_tokens_per_second, save: see `pipeline` and `save_cost`.
    """
    cache = scratch / f"{name}-cache"
    environment = environment | {"FMJAX_CACHE": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    first = []
    for run in ("cold", "data", "warm"):
        if run == "data":
            shutil.rmtree(cache / "xla", ignore_errors=True)
        count = steps if run == "warm" else 1
        metrics = train(name, folder, scratch / f"{name}-{run}", count, environment)
        first += [line["perf/seconds_to_first_step"] for line in metrics if "perf/seconds_to_first_step" in line]
    speeds = [line for line in metrics if "perf/tokens_per_second" in line]

    def median(key: str) -> float | None:
        found = [line[f"perf/{key}"] for line in speeds if f"perf/{key}" in line]
        return statistics.median(found) if found else None

    keys = ("tokens_per_second", "mfu", "input_wait_share")
    alone = {
        key: in_process(key, name, folder, str(scratch / f"{name}-{key}"), environment) for key in ("pipeline", "save")
    }
    return dict(
        first_step_seconds=first, **{key: median(key) for key in keys},
        pipeline_tokens_per_second=alone["pipeline"], save=alone["save"],
    )  # fmt: skip


def train(name: str, folder: str, workdir: pathlib.Path, steps: int, environment: dict) -> list[dict]:
    """The metrics of a run of the training command."""
    half = max(1, steps // 2)
    train = dict(steps=steps, log_every=1, eval_every=0, sample_every=0, checkpoint_every=half, tensorboard=False)
    config = train_config(SHAPES[name], folder, **train)
    file = workdir.with_suffix(".py")
    file.write_text(CONFIG.format(text=json.dumps(config)))
    command = [sys.executable, "-m", "fmjax.train", f"--config={file}", f"--workdir={workdir}"]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def in_process(what: str, *arguments) -> dict:
    """The result of one of this module's measurements in a process of its own."""
    *plain, environment = arguments
    command = [sys.executable, __file__, what, *plain]
    out = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def pipeline(name: str, folder: str, workdir: str, seconds: float = 5.0) -> float:
    """Tokens per second of one core that reads, packs and batches, from prepared data."""
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir
    from fmjax.config import resolve
    from fmjax.data.loader import Loader

    shape = SHAPES[name]
    data = open_data(resolve(train_config(shape, folder)), cache_dir(), None)
    loader = Loader(data.train, shape.batch, num_threads=0)
    next(loader)
    count, start, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        count += next(loader)["tokens"].size
    return count / (time.process_time() - used)


def save_cost(name: str, folder: str, workdir: str, saves: int = 3) -> dict:
    """What a checkpoint costs the steps around it.

    Returns:
      step_seconds: median of a step without a save.
      blocks_seconds: median time of the call that saves.
      slows_seconds: median of how much longer the steps take that run while files are written.
      share_at_100: the sum of both beside 100 steps.
    """
    from fmjax.training.checkpoint import Checkpointer

    side = Fmjax(SHAPES[name], "train", folder)
    number = 0

    def step() -> float:
        nonlocal number
        start = time.perf_counter()
        side.step(number)
        side.wait()
        number += 1
        return time.perf_counter() - start

    checkpointer = Checkpointer(pathlib.Path(workdir), keep_last=1)
    step(), step()
    checkpointer.save(side.state, {})  # the first one imports and makes folders
    checkpointer.finish()
    alone = [step() for _ in range(5)]
    blocks, slows = [], []
    for _ in range(saves):
        start = time.perf_counter()
        checkpointer.save(side.state, {})
        blocks.append(time.perf_counter() - start)
        during = [step()]
        while checkpointer.manager.is_saving_in_progress():
            during.append(step())
        checkpointer.finish()
        alone += [step() for _ in range(3)]
        slows.append(sum(during) - len(during) * statistics.median(alone))
    median, block, slow = (statistics.median(x) for x in (alone, blocks, slows))
    share = (block + max(slow, 0.0)) / (100 * median)
    return dict(step_seconds=median, blocks_seconds=block, slows_seconds=slow, share_at_100=share)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    print(json.dumps({"pipeline": pipeline, "save": save_cost}[what](*arguments)))
