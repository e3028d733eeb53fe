"""Where the time of a training step goes on CPUs, by XLA's host profiler: shares of products and of all else, by part.

python experiments/throughput/profile_step.py --shape gpt2-6x384-8k|clip|vit [--steps 3]

An operation's time is that of the thread that called it; what other threads do of a product is not counted, so that
shares are of elapsed time. Run again on one core (`taskset -c 0`) it tells what two cores are of use for.
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import pairs  # noqa: E402
from shapes import SHAPES  # noqa: E402
from sides import SIDES, make_weights  # noqa: E402

PAIRS = {"clip": "train", "vit": "vit"}  # by their names in pairs.py

PARTS = (
    ("cross-entropy", r"jvp\(\)/while"),
    ("weights of the blocks", r"/(mlp|attention)/\w+/dot_general"),
    ("attention", r"/attention"),
    ("norms", r"norm"),
    ("all other of the blocks", r"/blocks"),
)


def operations(text: str) -> dict[str, tuple[bool, str]]:
    """{name of an instruction: (whether it is or holds a product, where in the model it comes from)} of HLO's text."""
    bodies, current = collections.defaultdict(list), None
    for line in text.splitlines():
        if line and not line[0].isspace():
            head = re.match(r"(?:ENTRY )?%?([\w.-]+)", line)
            current = head and head[1]
        elif current:
            bodies[current].append(line)
    with_product = {name for name, lines in bodies.items() if any(re.search(r"\bdot\(", line) for line in lines)}
    found = {}
    for line in (line for lines in bodies.values() for line in lines):
        if (match := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line)) is None:
            continue
        calls = re.search(r"\bfusion\(.*calls=%?([\w.-]+)", line)
        product = bool(re.search(r"\bdot\(", line)) or bool(calls and calls[1] in with_product)
        place = re.search(r'op_name="([^"]*)"', line)
        found[match[1]] = product, place[1] if place else ""
    return found


def busy(folder: str) -> dict[str, float]:
    """{name of an operation: ns} of a profile: an operation's own time, without that of those it calls."""
    from jax.profiler import ProfileData

    total = collections.Counter()
    (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            events = sorted(
                ((e.start_ns, e.end_ns, dict(e.stats).get("hlo_op")) for e in line.events), key=lambda e: (e[0], -e[1])
            )
            above = []
            for start, end, name in events:
                if name is None:
                    continue
                while above and above[-1][0] <= start:
                    above.pop()
                total[name] += end - start
                if above:
                    total[above[-1][1]] -= end - start
                above.append((end, name))
    return total


def steps_of(shape: str, folder: str):
    """A function that makes step number N and waits for it, and the compiled program."""
    if shape in PAIRS:
        pairs.make_weights(folder, PAIRS[shape])
        return pairs.fmjax_train(folder, PAIRS[shape])
    make_weights(shape, pathlib.Path(folder))
    side = SIDES["fmjax"](SHAPES[shape], "train", folder)
    return lambda number: (side.step(number), side.wait()), side.run_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, *PAIRS], default="gpt2-6x384-8k")
    parser.add_argument("--steps", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        step, program = steps_of(flags.shape, folder)
        import jax

        step(0)
        with jax.profiler.trace(f"{folder}/profile"):
            for number in range(1, 1 + flags.steps):
                step(number)
        known = operations(program.as_text())
        spent = busy(f"{folder}/profile")
    rows = collections.Counter()
    for name, time in spent.items():
        product, place = known.get(name, (False, ""))
        part = next((part for part, pattern in PARTS if re.search(pattern, place)), "other")
        rows[part, "products" if product else "all else"] += time
    whole = sum(rows.values())
    print(f"{whole / flags.steps / 1e6:.0f} ms a step\n\n| part | what | ms | share |\n|---|---|---|---|")
    for (part, what), time in rows.most_common():
        print(f"| {part} | {what} | {time / flags.steps / 1e6:.0f} | {time / whole:.1%} |")


if __name__ == "__main__":
    main()
