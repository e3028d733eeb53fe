"""What a process that trains on one CPU device keeps of its steps' temporaries:

    python experiments/throughput/memory.py

Eight steps of a small LLaMA in each of several processes, which differ in what `fmjax.cpu` sets. Prints, for each, by
how much its memory was at most above what it had before the first step, and the median of its last five steps' seconds.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
import runs  # noqa: E402

WAYS = {
    "calls return when the program has run": ("keep_freed_memory", "run_in_turn"),
    "calls return at once, as JAX has it": ("keep_freed_memory",),
    "the same, freed memory given back to the system": (),
}
CONFIG = {
    "seed": 0,
    "train": {"steps": 1000, "batch_size": 16},
    "mesh": {"data": 1},
    "model": {
        "name": "llama", "vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_layers": 6,
        "num_heads": 6, "num_kv_heads": 6, "max_length": 256, "unroll": 6,
    },
    "objective": {"name": "causal_lm"},
    "data": {"source": "builtin", "sequence_length": 256, "tokenizer": "bytes"},
    "optimizer": {"name": "adamw", "learning_rate": 3e-4, "clip_norm": 1.0},
}  # fmt: skip


def run_steps(settings: tuple[str, ...]) -> None:
    """Prints one row of the table."""
    from fmjax import cpu

    for name in settings:
        assert getattr(cpu, name)()
    import jax
    import numpy as np

    from fmjax.assemble import build_module
    from fmjax.config import resolve
    from fmjax.training.program import make_program

    config = resolve(CONFIG)
    row = jax.ShapeDtypeStruct((256,), np.int32)
    example = {"tokens": row, "targets": row, "loss_weights": jax.ShapeDtypeStruct(row.shape, np.float32)}
    program = make_program(config, build_module(config, {}), example, jax.devices()[:1])
    state, step = program.init(), program.compile_train_step()
    temporaries = step.memory_analysis().temp_size_in_bytes // 10**6
    before, last, seconds, draw = runs.memory("VmRSS"), None, [], np.random.default_rng(0)
    runs.reset_peak()
    for _ in range(8):
        start = time.perf_counter()
        tokens = draw.integers(0, 8192, (16, 257), np.int32)
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": np.ones((16, 256), np.float32)}
        state, metrics = step(state, jax.device_put(batch, program.batch_sharding), program.key)
        if last is not None:
            float(last)  # as in training, the loss of the step before
        last = metrics["loss"]
        seconds.append(time.perf_counter() - start)
    float(last)
    grown = (runs.memory("VmHWM") - before) // 10**6
    print(f"{temporaries:,} | {grown:,} | {statistics.median(seconds[3:]):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=2)
    flags = parser.parse_args()
    if flags.way:
        return run_steps(WAYS[flags.way])
    print("| | a step's temporaries, MB | the process grew by, MB | s/step |\n|---|---|---|---|")
    for way in list(WAYS) * flags.repeats:
        command = [sys.executable, __file__, f"--way={way}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {way} | {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()
