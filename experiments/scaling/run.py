"""What a training step costs as layers, width, length, batch and simulated devices grow, beside what it should:

    python experiments/scaling/run.py [--help]

Each point is planned, compiled and run in a process of its own, on CPUs. Writes results.json and scaling.png, and
prints the tables of the page. `--points=tiny` is a check of this in a minute; it writes only where --output says.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import runs  # noqa: E402
from points import SETS, Point  # noqa: E402

# Column of a table: what is measured, and what it should grow with.
TIME, MEMORY = ("seconds", "model_flops"), ("process_bytes", "planned_bytes")


def in_process(point: Point, min_steps: int, min_seconds: float) -> dict:
    """`step.measure` in a fresh process with the point's devices and no cache of compiled programs."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(point.devices),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    case = json.dumps([dataclasses.asdict(point), min_steps, min_seconds])
    command = [sys.executable, __file__, "--worker", case]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if found.returncode:
        raise SystemExit(f"{point} failed with exit code {found.returncode}; its messages are above")
    return json.loads(found.stdout.splitlines()[-1])


def exponent(xs, ys) -> float | None:
    """b of the least-squares fit log y = a + b log x; None where something is too small to be measured."""
    if min(ys) <= 0:
        return None
    return round(float(np.polyfit(np.log(xs), np.log(ys), 1)[0]), 4) + 0.0  # no -0.0


def column(rows: list[dict], name: str) -> list[float]:
    return [row[name] for row in rows]


def exponents(found: dict[str, list[dict]]) -> list[dict]:
    """A line for each thing varied: expected and measured exponents of time and memory; last, of compiling."""
    lines = []
    for name, rows in found.items():
        xs = column(rows, name)
        line = {"varied": name, "first": xs[0], "last": xs[-1]}
        for label, (measured, expected) in dict(time=TIME, memory=MEMORY).items():
            line[f"{label}_expected"] = exponent(xs, column(rows, expected))
            line[f"{label}_measured"] = exponent(xs, column(rows, measured))
            line[f"{label}_expected_at_end"] = exponent(xs[-2:], column(rows, expected)[-2:])
            line[f"{label}_measured_at_end"] = exponent(xs[-2:], column(rows, measured)[-2:])
        lines.append(line)
    return lines


def compiling(found: dict[str, list[dict]]) -> dict | None:
    """Compile time against depth; from 2 layers on, since a loop that runs once is no loop."""
    rows = [row for row in found.get("layers", []) if row["layers"] > 1]
    if len(rows) < 2:
        return None
    xs, seconds = column(rows, "layers"), column(rows, "compile_seconds")
    return dict(first=xs[0], last=xs[-1], seconds=[seconds[0], seconds[-1]], measured=exponent(xs, seconds))


def two(number: float | None) -> str:
    """With two places behind the point."""
    return "-" if number is None else f"{number:.2f}"


def summary(lines: list[dict], compiled: dict | None) -> str:
    """The first table of the page."""
    text = [
        "| varied | from | to | time: expected | measured | last doubling "
        "| memory: expected | measured | last doubling |",
        "|" + "---|" * 9,
    ]
    for line in lines:
        cells = [
            f"{two(line[f'{label}_expected'])} | **{two(line[f'{label}_measured'])}** "
            f"| {two(line[f'{label}_expected_at_end'])}, {two(line[f'{label}_measured_at_end'])}"
            for label in ("time", "memory")
        ]
        text.append(f"| {line['varied']} | {line['first']} | {line['last']} | {' | '.join(cells)} |")
    if compiled:
        text.append(
            f"| layers, compiling | {compiled['first']} | {compiled['last']} | 0.00 | **{two(compiled['measured'])}** "
            "| - | - | - | - |"
        )
    return "\n".join(text)


def details(found: dict[str, list[dict]]) -> str:
    """The second table: every point."""
    text = [
        "| varied | layers | width | length | batch | devices | GFLOP | s/step | GFLOP/s | MB/device: planned "
        "| one step | running | compiled, s |",
        "|" + "---|" * 13,
    ]
    for name, rows in found.items():
        for row in rows:
            sizes = " | ".join(str(row[field.name]) for field in dataclasses.fields(Point))
            text.append(
                f"| {name} | {sizes} | {row['model_flops'] / 1e9:,.1f} | {row['seconds']:.3f} "
                f"| {row['model_flops'] / row['seconds'] / 1e9:,.0f} | {row['planned_bytes'] / 1e6:,.0f} "
                f"| {row['process_bytes'] / 1e6:,.0f} | {row['running_bytes'] / 1e6:,.0f} "
                f"| {row['compile_seconds']:.1f} |"
            )
    return "\n".join(text)


def plot(found: dict[str, list[dict]], file: pathlib.Path) -> None:
    """A column of panels for each thing varied, time above and memory below; compile time beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = found.get("layers")
    figure, axes = pyplot.subplots(2, len(found) + bool(layers), figsize=(3 * (len(found) + 1), 6), squeeze=False)
    for i, (name, rows) in enumerate(found.items()):
        xs = column(rows, name)
        seconds, flops = np.array(column(rows, "seconds")), np.array(column(rows, "model_flops"))
        rate = np.exp(np.mean(np.log(flops / seconds)))
        axes[0, i].plot(xs, seconds, "o-", label=f"measured: {two(exponent(xs, seconds))}")
        axes[0, i].plot(xs, flops / rate, "--", label=f"FLOPs at one rate: {two(exponent(xs, flops))}")
        measured, planned = (np.array(column(rows, part)) / 1e6 for part in MEMORY)
        axes[1, i].plot(xs, measured, "o-", label=f"process: {two(exponent(xs, measured))}")
        axes[1, i].plot(xs, planned, "--", label=f"plan: {two(exponent(xs, planned))}")
    if layers:
        axes[0, -1].plot(column(layers, "layers"), column(layers, "compile_seconds"), "o-", label="lower and compile")
        axes[0, -1].set(title="compile time against depth", xlabel="layers", ylim=(0, None))
        axes[0, -1].set_xscale("log", base=2)
        axes[0, -1].legend(fontsize=8)
        axes[1, -1].axis("off")
    for i, name in enumerate(found):
        for axis in axes[:, i]:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=10)
            axis.set(xlabel=name)
            axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("MB a device")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--points", default="cores2", choices=list(SETS))
    parser.add_argument("--varied", nargs="*", choices=list(SETS["cores2"]), help="default: all")
    parser.add_argument("--min_steps", type=int, default=2, help="timed of each point, after one that is not")
    parser.add_argument("--min_seconds", type=float, default=1.0, help="that they take together at least")
    parser.add_argument("--output", type=pathlib.Path, help="default: this folder; none for tiny")
    flags = parser.parse_args()
    if flags.worker:
        from step import measure

        fields, *limits = json.loads(flags.worker)
        print(json.dumps(measure(Point(**fields), *limits)))
        return
    started = time.perf_counter()
    known, found = {}, {}
    for name in flags.varied or SETS[flags.points]:
        for point in SETS[flags.points][name]:
            if point not in known:
                known[point] = dataclasses.asdict(point) | in_process(point, flags.min_steps, flags.min_seconds)
                print(json.dumps(known[point]), file=sys.stderr, flush=True)
            found.setdefault(name, []).append(known[point])
    lines, compiled = exponents(found), compiling(found)
    print(summary(lines, compiled), details(found), sep="\n\n")
    output = flags.output or (None if flags.points == "tiny" else HERE)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        tables = dict(exponents=lines, compiling=compiled, points=found)
        runs.save(output, tables | dict(minutes=(time.perf_counter() - started) / 60))
        plot(found, output / "scaling.png")


if __name__ == "__main__":
    main()
