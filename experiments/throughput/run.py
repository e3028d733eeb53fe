"""Training and forward passes by fmjax and by PyTorch, same weights, tokens, precision and machine:

    pip install -e '.[oracle]'
    python experiments/throughput/run.py [--help]

On a machine without a GPU it measures the shapes for two cores, on one with a GPU those for a GPU of 80 GB. A process a
side is started for every shape; after a warm-up they run one step each in turns, never at the same time, and medians
are compared. Then fmjax's own training command is measured with real data: time to the first step, the data pipeline
alone, and what saving a checkpoint costs. Writes results.json, prints the tables of the page, and draws throughput.png.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from runs import memory, processor  # noqa: E402
from shapes import CPU, GPU, SHAPES  # noqa: E402
from sides import SIDES, make_weights  # noqa: E402
from whole_run import whole_run  # noqa: E402

WORKS = ("train", "forward")


def work(case: dict) -> None:
    """A worker: a line with a number of steps in, a line of JSON out."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer):
        print(json.dumps(answer), file=out, flush=True)

    try:
        start = time.perf_counter()
        shape = dataclasses.replace(SHAPES[case["shape"]], chunk_size=case["chunk_size"])
        side = SIDES[case["side"]](shape, case["work"], case["folder"])
        side.step(0)
        loss = side.wait()
        ready = time.perf_counter() - start
        side.step(1)
        side.wait()
    except Exception as error:  # a way that does not work here is a result too
        return say(dict(error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))
    facts = dict(device=side.device, loss=loss, ready_seconds=ready)
    if case["side"] == "fmjax":
        facts["temp_bytes"] = side.temp_bytes()
    if case["side"] == "fmjax" and case["work"] == "train":
        facts |= dict(flops=side.flops(), peak_flops=side.peak_flops(), compile_seconds=side.compile_seconds)
    say(facts)
    number = 2
    for line in sys.stdin:
        count, start, processor = int(line), time.perf_counter(), time.process_time()
        for _ in range(count):
            side.step(number)
            number += 1
        side.wait()
        seconds = (time.perf_counter() - start) / count
        used = (time.process_time() - processor) / count
        sizes = dict(peak_mb=memory("VmHWM") / 2**20, peak_device_bytes=side.peak_device_bytes())
        say(dict(seconds=seconds, processor_seconds=used, **sizes))


class Worker:
    """A side in a process of its own; `facts` are what it said first."""

    def __init__(self, case: dict, side: str):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(case | dict(side=side))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment(),
        )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.log.seek(0)
        return dict(error=f"the process ended without an answer: {self.log.read()[-500:]}")

    def run(self, steps: int) -> dict:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def environment() -> dict:
    """Of every process: a GPU's memory is taken as it is needed, so that its peak says what that was."""
    return os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(HERE.parents[1]),
    }


def take_turns(case: dict, sides: list[str], repeats: int, steps: int) -> tuple[dict, dict]:
    """(what each side said first, or its error; the turns of those without one)."""
    workers, results = {}, {}
    for side in sides:
        worker = Worker(case, side)
        results[side] = worker.facts
        if "error" in worker.facts:
            worker.end()
        else:
            workers[side] = worker
    runs = {side: [] for side in workers}
    try:
        for _ in range(repeats):
            for side in list(workers):
                answer = workers[side].run(steps)
                if "error" in answer:
                    results[side] = answer
                    workers.pop(side).end()
                else:
                    runs[side].append(answer)
    finally:
        for worker in workers.values():
            worker.end()
    return results, {side: runs[side] for side in workers}


def measure(case: dict, sides: list[str], repeats: int, steps: int, together: bool) -> dict:
    """Medians of all sides, and the ratios of their turns.

    Args:
      together: whether all sides are loaded at the same time and turns of the sides are next to each other; otherwise a
        side has all its turns before the next is loaded, as on a GPU, whose memory does not hold several.
    """
    results, runs = {}, {}
    for group in [sides] if together else [[side] for side in sides]:
        facts, found = take_turns(case, group, repeats, steps)
        results, runs = results | facts, runs | found
    shape = SHAPES[case["shape"]]
    for side in runs:
        seconds = [run["seconds"] for run in runs[side]]
        median = statistics.median(seconds)
        last = runs[side][-1]
        results[side] |= dict(
            seconds=median, best_seconds=min(seconds),
            processor_seconds=statistics.median(run["processor_seconds"] for run in runs[side]),
            tokens_per_second=shape.batch * shape.length / median,
            peak_mb=last["peak_mb"], peak_device_bytes=last["peak_device_bytes"],
        )  # fmt: skip
        if side != "fmjax" and "fmjax" in runs:
            ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["fmjax"], runs[side])]
            results[side]["times_slower"] = statistics.median(ratios)
    return results


def best(row: dict) -> tuple[str, dict]:
    """The fastest of the other sides: its name and results. ("none", {}) where none worked."""
    found = {k: v for k, v in row["results"].items() if k != "fmjax" and "seconds" in v}
    name = min(found, key=lambda k: found[k]["seconds"], default="none")
    return name, found.get(name, {})


def gigabytes(result: dict) -> str:
    """At peak: of the device, or of the process where that is the same."""
    size = result.get("peak_device_bytes") or result["peak_mb"] * 2**20
    return f"{size / 1e9:.1f}"


def report(rows: list[dict]) -> str:
    """The first table of the page."""
    lines = [
        "| shape | work | fmjax tok/s | PyTorch tok/s | its way | ratio | MFU | peak GB | PyTorch | losses differ |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, (name, theirs) = row["results"]["fmjax"], best(row)
        if "seconds" not in ours or not theirs:
            errors = "; ".join(f"{k}: {v['error']}" for k, v in row["results"].items() if "error" in v)
            lines.append(f"| {row['shape']} | {row['work']} | {errors} |")
            continue
        mfu = "-"
        if ours.get("peak_flops"):
            mfu = f"{ours['flops'] / ours['seconds'] / ours['peak_flops']:.1%}"
        lines.append(
            f"| {row['shape']} | {row['work']} | {ours['tokens_per_second']:,.0f} | {theirs['tokens_per_second']:,.0f} "
            f"| {'compiled' if 'compiled' in name else 'eager'} | **{theirs['times_slower']:.2f}** | {mfu} "
            f"| {gigabytes(ours)} | {gigabytes(theirs)} | {abs(ours['loss'] - theirs['loss']):.0e} |"
        )
    return "\n".join(lines)


def report_whole(wholes: list[dict], rows: list[dict]) -> str:
    """The second table."""
    lines = [
        "| shape | first step, all cold, s | nothing compiled | all warm | tok/s | MFU | waiting for input "
        "| pipeline tok/s a core | step uses tok/s | save, ms | slows steps, ms | share at 1 in 100 steps |",
        "|" + "---|" * 12,
    ]
    for whole in wholes:
        ours = next((r["results"]["fmjax"] for r in rows if (r["shape"], r["work"]) == (whole["shape"], "train")), {})
        used = ours.get("tokens_per_second") or whole["tokens_per_second"]
        save = whole["save"]
        mfu = f"{whole['mfu']:.1%}" if whole["mfu"] else "-"
        lines.append(
            f"| {whole['shape']} | {' | '.join(f'{s:.1f}' for s in whole['first_step_seconds'])} "
            f"| {whole['tokens_per_second']:,.0f} | {mfu} | {whole['input_wait_share']:.1%} "
            f"| {whole['pipeline_tokens_per_second']:,.0f} | {used:,.0f} | {save['blocks_seconds'] * 1e3:.0f} "
            f"| {save['slows_seconds'] * 1e3:.0f} | {save['share_at_100']:.2%} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict], file: pathlib.Path) -> None:
    """Tokens per second of every side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4))
    for offset, side in enumerate(SIDES):
        found = [(i, row["results"][side]) for i, row in enumerate(rows) if "seconds" in row["results"].get(side, {})]
        axes.bar([i + 0.27 * offset for i, _ in found], [r["tokens_per_second"] for _, r in found], 0.27, label=side)
    axes.set_xticks([i + 0.27 for i in range(len(rows))], [f"{r['shape']}\n{r['work']}" for r in rows], fontsize=7)
    axes.set(ylabel="tokens per second")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), help="default: those for this machine")
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=WORKS)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--steps", type=int, help="of a turn; default: 1 on CPUs, 5 on a GPU")
    parser.add_argument("--chunk_size", type=int, help="fmjax's objective.chunk_size; default: its own")
    parser.add_argument("--whole", nargs="*", choices=list(SHAPES), help="shapes of the runs with real data")
    parser.add_argument("--whole_steps", type=int, default=20, help="steps of such a run")
    parser.add_argument("--output", type=pathlib.Path, default=HERE)
    flags = parser.parse_args()
    if flags.worker:
        return work(json.loads(flags.worker))

    import torch

    gpu = torch.cuda.is_available()
    steps = flags.steps or (5 if gpu else 1)
    shapes = flags.shapes or (GPU if gpu else CPU)
    rows, wholes = [], []
    with tempfile.TemporaryDirectory() as scratch:

        def weights(name: str) -> str:
            folder = pathlib.Path(scratch) / name
            if not folder.exists():
                make_weights(name, folder)
            return str(folder)

        for name in shapes:
            for kind in flags.works:
                case = dict(shape=name, work=kind, folder=weights(name), chunk_size=flags.chunk_size)
                found = measure(case, flags.sides, flags.repeats, steps, together=not gpu)
                rows.append(dict(shape=name, work=kind, results=found))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        for name in (GPU if gpu else CPU[1:2]) if flags.whole is None else flags.whole:
            found = whole_run(name, weights(name), pathlib.Path(scratch), flags.whole_steps, environment())
            wholes.append(dict(shape=name, **found))
            print(json.dumps(wholes[-1]), file=sys.stderr, flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "torch", "transformers")}
    setting = dict(
        cores=len(os.sched_getaffinity(0)), processor=processor(), gpu=torch.cuda.get_device_name() if gpu else None,
        date=time.strftime("%Y-%m-%d"), repeats=flags.repeats, steps=steps, python=sys.version.split()[0],
    )  # fmt: skip
    flags.output.mkdir(parents=True, exist_ok=True)
    results = dict(rows=rows, whole=wholes, setting=setting | versions)
    (flags.output / f"results{'_gpu' if gpu else ''}.json").write_text(json.dumps(results, indent=2) + "\n")
    if rows:
        print(report(rows), end="\n\n")
        plot(rows, flags.output / f"throughput{'_gpu' if gpu else ''}.png")
    if wholes:
        print(report_whole(wholes, rows))


if __name__ == "__main__":
    main()
