"""Attention of long rows on CPUs, with and without blocks of keys (`fmjax/layers/attention/cpu.py`):

    python experiments/throughput/attention.py

Both ways in turns, one process. Prints the least of the seconds of several calls, and the temporaries of the programs.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
WAYS = {"blocks of queries": 2**40, "of queries and keys": 1}  # the length from which keys go in blocks
# Rows, length, query heads, key-value heads, causal, window.
CASES = (
    (8, 1024, 6, 6, True, None), (4, 2048, 6, 6, True, None), (2, 2048, 8, 2, True, None),
    (2, 2048, 12, 12, False, None), (4, 4096, 6, 6, True, None),
    (1, 4096, 12, 12, True, None), (1, 4096, 6, 6, False, None), (1, 8192, 6, 2, True, None),
    (1, 8192, 6, 2, True, 1024), (2, 16384, 1, 1, True, None),
)  # fmt: skip
HEAD_DIM = 64


def programs(rows, length, heads, kv_heads, causal, window):
    """Arguments, and for each way a compiled forward pass and one with gradients."""
    import jax
    import jax.numpy as jnp

    from fmjax.layers.attention import cpu as attention_cpu

    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (rows, length, n, HEAD_DIM)) for key, n in zip(keys, (heads, kv_heads, kv_heads))]
    options = dict(segment_ids=None, positions=None, causal=causal, window=window, scale=HEAD_DIM**-0.5)
    found = {}
    for way, attention_cpu.LONG in WAYS.items():
        forward = lambda q, k, v: attention_cpu.run(q, k, v, **options)
        total = lambda q, k, v: jnp.sum(jnp.square(forward(q, k, v)))
        found[way] = [jax.jit(f).lower(*arrays).compile() for f in (forward, jax.grad(total, argnums=(0, 1, 2)))]
    return arrays, found


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    parser = argparse.ArgumentParser(description=__doc__.split(" (")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print("| rows | length | heads, of keys | mask | | forward, s | MB | with gradients, s | MB |\n" + "|---" * 9 + "|")
    for case in CASES:
        arrays, found = programs(*case)
        seconds = {way: [[], []] for way in found}
        for _ in range(repeats):
            for way, compiled in found.items():
                for one, of_one in zip(compiled, seconds[way]):
                    start = time.perf_counter()
                    jax.block_until_ready(one(*arrays))
                    of_one.append(time.perf_counter() - start)
        rows, length, heads, kv_heads, causal, window = case
        mask = f"window {window}" if window else "causal" if causal else "none"
        for way, compiled in found.items():
            cells = [
                f"{min(of_one):.2f} | {one.memory_analysis().temp_size_in_bytes / 1e6:,.0f}"
                for one, of_one in zip(compiled, seconds[way])
            ]
            print(f"| {rows} | {length:,} | {heads}, {kv_heads} | {mask} | {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
