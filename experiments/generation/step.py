"""Where the time of a decoding step goes on CPUs, beside the time that reading the weights takes.

python experiments/generation/step.py FOLDER [--batch 1] [--filled 80]

By XLA's host profiler: an operation's time is that of the threads that called it. The first line has the step without
the profiler.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments" / "throughput")]

from profile_step import busy, operations  # noqa: E402



def parts(text: str, vocab_size: int) -> dict[str, str]:
    """{name of an instruction: the part of the step it belongs to} of HLO's text.

    XLA's rewriting of products forgets where they come from: those with a batch are attention's, of those with
    weights the head's has the vocabulary in its shape.
    """
    found = {}
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    for name, (product, place) in operations(text).items():
        part = "norms, rope, activations" if "_decoding_block" in place else "sampling, all else"
        found[name] = "attention: softmax, cache" if "/attention/" in place else part
        if product:
            line = re.search(rf"^ +(?:ROOT )?%?{re.escape(name)} = .*", text, re.MULTILINE)[0]
            calls = re.search(r"calls=%?([\w.-]+)", line)
            line = bodies[calls[1]] if calls else line
            weights = "weights: output head" if str(vocab_size) in line else "weights: blocks"
            found[name] = "attention: products" if "_batch_dims" in line else weights
    return found


def memory_seconds(size: int) -> float:
    """How long all cores take to read `size` bytes, the best of five."""
    import numpy as np

    cores = len(os.sched_getaffinity(0))
    parts = np.ones((cores, size // 4 // cores), np.float32)
    times = []
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a published folder of a decoder's weights")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--filled", type=int, default=80, help="places that each row has filled")
    flags = parser.parse_args()
    import jax
    import numpy as np

    import fmjax
    from fmjax.inference.decoding import places
    from fmjax.inference.engine import Engine
    from fmjax.inference.engine_programs import CHUNK, programs
    from fmjax.inference.sampler import Uses

    model = fmjax.load(flags.folder, dtype="float32")
    engine = Engine(model.module, model.params, batch_size=flags.batch, donate=True)
    del model
    form = engine.form(Uses(), flags.batch)._replace(part=None)
    start, _, decode = programs()
    options = np.ones(flags.batch, bool), np.full(1, -1, np.int32), np.int32(CHUNK), np.int32(flags.batch)

    def state():
        new = start(form, flags.batch, places(flags.filled + CHUNK), None, engine.module.vocab_size)
        lengths = np.full(flags.batch, flags.filled, np.int32)
        return new._replace(remaining=np.full_like(lengths, CHUNK + 1), cache=new.cache | {"lengths": lengths})

    text = decode.lower(form, engine.weights, state(), *options).compile().as_text()
    times = []
    for _ in range(5):
        began = state()
        jax.block_until_ready(began)
        clock = time.perf_counter()
        jax.block_until_ready(decode(form, engine.weights, began, *options))
        times.append(time.perf_counter() - clock)
    with tempfile.TemporaryDirectory() as folder:
        began = state()
        with jax.profiler.trace(folder):
            jax.block_until_ready(decode(form, engine.weights, began, *options))
        spent, known = busy(folder), parts(text, engine.module.vocab_size)
    rows = collections.Counter()
    for name, nanoseconds in spent.items():
        rows[known.get(name, "sampling, all else")] += nanoseconds
    size = sum(x.nbytes for x in {id(x): x for x in jax.tree.leaves(engine.weights)}.values())
    floor, whole = memory_seconds(size), sum(rows.values())
    print(f"{1e3 * min(times) / CHUNK:.1f} ms a step; reading {size / 1e6:.0f} MB takes {1e3 * floor:.1f} ms\n")
    print("| part | ms a step with the profiler | share |\n|---|---|---|")
    for part, nanoseconds in rows.most_common():
        print(f"| {part} | {nanoseconds / CHUNK / 1e6:.2f} | {nanoseconds / whole:.1%} |")


if __name__ == "__main__":
    main()
