"""The rate of one float32 matrix product, in the shapes for two cores, in each library: what their steps consist of.

python experiments/throughput/product.py
"""

import os
import statistics
import subprocess
import sys
import time

ROWS, WIDTH, INNER = 16 * 256, 384, 4 * 384


def product(library: str):
    """A function that multiplies [ROWS, WIDTH] by [WIDTH, INNER] once."""
    if library == "torch":
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        x, w = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, INNER)
        return lambda: x @ w
    import jax

    x, w = (jax.random.normal(jax.random.key(0), shape) for shape in ((ROWS, WIDTH), (WIDTH, INNER)))
    multiply = jax.jit(lambda x, w: x @ w)
    return lambda: multiply(x, w).block_until_ready()


def measure(library: str, warmup: int = 5, repeats: int = 50) -> float:
    """GFLOP/s, the median of the repeats."""
    multiply, seconds = product(library), []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * WIDTH * INNER / statistics.median(seconds[warmup:]) / 1e9


def main() -> None:
    if sys.argv[1:]:
        return print(f"{sys.argv[1]}: {measure(sys.argv[1]):.0f} GFLOP/s")
    # A process each, or one library's threads would wait beside the other's.
    for library in ("jax", "torch") * 3:
        subprocess.run([sys.executable, __file__, library], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


if __name__ == "__main__":
    main()
