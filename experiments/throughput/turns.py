"""Sides of a comparison, a process each, that take turns."""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

SIDES = ("fmjax", "eager", "compiled")


def a_device_a_core(batch: int) -> None:
    """What `JAX_NUM_CPU_DEVICES=N python -m fmjax.train` sets, with a device for every core, or for as many of them as
    divide the batch; to be called before JAX is imported."""
    from fmjax import cpu

    number = max(n for n in range(1, cpu.cores() + 1) if batch % n == 0)
    os.environ["JAX_NUM_CPU_DEVICES"] = str(number)
    cpu.order_collectives()
    cpu.set_up_training()


def serve(make: Callable[[], Callable]) -> None:
    """A worker: a number in, a line of JSON out, [seconds, seconds of its processors, answer, bytes of memory at its
    highest]. `make` gives the function of a number that is timed."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    do = make()
    for line in sys.stdin:
        seconds, processor = time.perf_counter(), time.process_time()
        answer = do(int(line))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = time.perf_counter() - seconds, time.process_time() - processor, answer, memory
        print(json.dumps(found), file=out, flush=True)


def measure(script: str, folder: str, kind: str, repeats: int, sides: tuple[str, ...] = SIDES) -> None:
    """Prints what the sides of `script --worker FOLDER KIND SIDE` take, in turns after two calls each.

    The first side is asked first: others may read what it writes into the folder.
    """
    root = os.pathsep.join(filter(None, (str(pathlib.Path(script).parents[2]), os.environ.get("PYTHONPATH"))))
    start = lambda side: subprocess.Popen(
        [sys.executable, script, "--worker", folder, kind, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": root},
    )  # fmt: skip
    workers = {}

    def ask(side, number):
        workers[side].stdin.write(f"{number}\n")
        workers[side].stdin.flush()
        answer = workers[side].stdout.readline()
        if not answer:
            sys.exit(f"{kind}: the side {side} stopped; run {script} --worker FOLDER {kind} {side} by itself")
        return json.loads(answer)

    first = {}
    for side in sides:
        workers[side] = start(side)
        first[side] = ask(side, 0)[2]
    for side in workers:
        ask(side, 1)
    turns = [{side: ask(side, number) for side in workers} for number in range(2, 2 + repeats)]
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    best = min((side for side in workers if side != "fmjax"), key=lambda s: statistics.median(t[s][0] for t in turns))
    for side in workers:
        seconds, processor = (statistics.median(turn[side][i] for turn in turns) for i in (0, 1))
        differ = np.abs(np.asarray(first[side]) - np.asarray(first["fmjax"])).max()
        memory = turns[-1][side][3] / 2**20
        print(
            f"{kind} {side}: {seconds:.2f} s, {processor:.2f} s of processors, {memory:,.0f} MB at its highest; "
            f"differs by {differ:.0e}"
        )
    ratios = [statistics.median(turn[best][i] / turn["fmjax"][i] for turn in turns) for i in (0, 1)]
    print(
        f"{kind}: {ratios[0]:.2f} times the speed of {best}, {ratios[1]:.2f} by the processor's seconds",
        flush=True,
    )
