"""Generation with the same weights by fmjax and by `transformers`: python experiments/generation/run.py [--help]

For every model, batch size and prompt length, a process a library is started with the same folder of weights; after a
warm-up they generate greedily in turns, never at the same time, and medians are compared. Writes results.json, a table
to the terminal, and generation.png.
"""

import argparse
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
VOCAB, CONTEXT = 8000, 1024
CONFIGS = {
    "gpt2-14m": ("GPT2Config", dict(n_layer=6, n_embd=384, n_head=6, vocab_size=VOCAB, n_positions=CONTEXT)),
    "llama-17m": (
        "LlamaConfig",
        dict(num_hidden_layers=6, hidden_size=384, intermediate_size=1024, num_attention_heads=6, num_key_value_heads=6,
             vocab_size=VOCAB, max_position_embeddings=CONTEXT),
    ),
    # For accelerators: python experiments/generation/run.py --models=llama-1b --dtype=bfloat16
    "llama-1b": (
        "LlamaConfig",
        dict(num_hidden_layers=16, hidden_size=2048, intermediate_size=8192, num_attention_heads=32,
             num_key_value_heads=8, vocab_size=128256, max_position_embeddings=4096, tie_word_embeddings=True),
    ),
}  # fmt: skip


def make_folder(name: str, folder: pathlib.Path, dtype: str) -> None:
    """A published folder of random weights, large enough that no two tokens are about equally likely."""
    import torch
    import transformers

    kind, fields = CONFIGS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**fields))
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def prompts(batch: int, length: int, vocab: int) -> list[list[int]]:
    """Random tokens."""
    import numpy as np

    return np.random.default_rng(0).integers(3, vocab, (batch, length)).tolist()


class Fmjax:
    """One library's side: `run` generates once and returns what it took."""

    def __init__(self, case):
        import jax

        import fmjax
        from fmjax.inference.engine import Engine
        from fmjax.inference.engine_requests import PromptRequest

        model = fmjax.load(case["folder"], dtype=case["dtype"])
        tokens = prompts(case["batch"], case["prompt"], model.module.vocab_size)
        self.engine = Engine(model.module, model.params, batch_size=case["batch"], donate=True)
        self.requests = [PromptRequest(prompt, case["new"]) for prompt in tokens]
        self.device = str(jax.devices()[0].device_kind)
        del model

    def run(self) -> dict:
        start = time.perf_counter()
        found, first = {}, None
        for chunk in self.engine.run(self.requests):
            first = first or time.perf_counter() - start
            found.setdefault(chunk.index, []).extend(chunk.tokens)
        return dict(seconds=time.perf_counter() - start, first=first, tokens=[found[i] for i in sorted(found)])

    def weights(self) -> int:
        """Bytes of weights that one step reads: all but tables of which it reads a row."""
        import jax

        sizes = {
            jax.tree_util.keystr(path): x.nbytes
            for path, x in jax.tree_util.tree_leaves_with_path(self.engine.weights.params)
        }
        tied = not any("'head'" in name for name in sizes)
        tables = ("position_embedding",) if tied else ("position_embedding", "token_embedding")
        return sum(size for name, size in sizes.items() if not any(table in name for table in tables))

    def bandwidth(self) -> float:
        """Bytes per second of x + 1 over 256 MB, read and written."""
        import jax
        import jax.numpy as jnp

        add, x = jax.jit(lambda x: x + 1), jnp.zeros(2**26, jnp.float32)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            jax.block_until_ready(add(x))
            times.append(time.perf_counter() - start)
        return 2 * x.nbytes / min(times)


class Transformers:
    """As `Fmjax`. `cache` is "dynamic", its default, or "static"."""

    def __init__(self, case):
        import torch
        import transformers

        self.cuda = torch.cuda.is_available()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.device = torch.cuda.get_device_name() if self.cuda else "cpu"
        model = transformers.AutoModelForCausalLM.from_pretrained(case["folder"], dtype=getattr(torch, case["dtype"]))
        self.model = model.eval().to("cuda" if self.cuda else "cpu")
        self.inputs = torch.tensor(prompts(case["batch"], case["prompt"], model.config.vocab_size)).to(
            self.model.device
        )
        # Weights that were saved without settings for generation may carry an end of text; nothing is to end here.
        self.model.generation_config.eos_token_id = None
        self.options = dict(
            attention_mask=torch.ones_like(self.inputs), do_sample=False, max_new_tokens=case["new"], pad_token_id=0
        )
        if case["cache"] == "static":
            self.options["cache_implementation"] = "static"

    def run(self) -> dict:
        import torch
        from transformers.generation.streamers import BaseStreamer

        times = []

        class Clock(BaseStreamer):
            def put(self, value):
                times.append(time.perf_counter())

            def end(self):
                pass

        start = time.perf_counter()
        with torch.inference_mode():
            found = self.model.generate(self.inputs, streamer=Clock(), **self.options)
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        # The streamer is first given the prompt, then every token.
        return dict(seconds=seconds, first=times[1] - start, tokens=found[:, self.inputs.shape[1] :].tolist())


def peak_memory() -> float:
    """Of this process so far, in MB. (`ru_maxrss` would begin with the parent's.)"""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def work(case: dict) -> None:
    """A worker: a line in, a line of JSON out."""
    try:
        side = {"fmjax": Fmjax, "transformers": Transformers}[case["library"]](case)
        loaded = peak_memory()
        side.run()
    except Exception as error:  # a way of the other library's that does not work here is a result too
        print(json.dumps(dict(error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")), flush=True)
        return
    print(json.dumps(dict(device=side.device)), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            facts = dict(loaded_mb=loaded, peak_mb=peak_memory())
            if isinstance(side, Fmjax):
                facts |= dict(weight_bytes=side.weights(), bandwidth=side.bandwidth())
            print(json.dumps(facts), flush=True)
            return
        before = time.process_time()
        result = side.run()
        print(json.dumps(result | dict(cpu_seconds=time.process_time() - before)), flush=True)


def start_worker(case: dict, library: str, cache: str):
    arguments = json.dumps(case | dict(library=library, cache=cache))
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, cwd=HERE.parents[1],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip


def ask(worker, line: str | None = None) -> dict:
    if line is not None:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    return json.loads(answer) if answer else dict(error="the process ended without an answer")


def measure(case: dict, repeats: int, caches: list[str]) -> dict:
    """Medians of both libraries over turns, and the ratios of turns that were next to each other."""
    sides = {"fmjax": ("fmjax", "")} | {f"transformers, {cache} cache": ("transformers", cache) for cache in caches}
    workers = {name: start_worker(case, *side) for name, side in sides.items()}
    runs, results = {name: [] for name in sides}, {}
    for name, worker in list(workers.items()):
        ready = ask(worker)
        if "error" in ready:
            results[name] = ready
            worker.wait()
            del workers[name]
    for _ in range(repeats):
        for name, worker in workers.items():
            runs[name].append(ask(worker, "run"))
    count = case["batch"] * case["new"]
    for name, worker in workers.items():
        facts = ask(worker, "end")
        worker.wait()
        keys = ("seconds", "first", "cpu_seconds")
        seconds, first, cpu = (statistics.median(run[key] for run in runs[name]) for key in keys)
        results[name] = facts | dict(
            seconds=seconds, first_token_ms=1e3 * first, tokens_per_second=count / seconds,
            best_seconds=min(run["seconds"] for run in runs[name]), cpu_seconds=cpu,
        )  # fmt: skip
    ours = runs["fmjax"][0]["tokens"]
    for name in workers:
        if name != "fmjax":
            theirs = runs[name][0]["tokens"]
            same = sum(a == b for x, y in zip(ours, theirs) for a, b in zip(x, y)) / count
            ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["fmjax"], runs[name])]
            firsts = [b["first"] / a["first"] for a, b in zip(runs["fmjax"], runs[name])]
            results[name] |= dict(
                same_tokens=same, times_slower=statistics.median(ratios), first_times_slower=statistics.median(firsts)
            )
    return results


def report(rows: list[dict], bandwidth: float | None) -> str:
    """The table of the README."""
    lines = [
        "| model | batch | prompt | fmjax tok/s | transformers tok/s | faster | first token ms | transformers | faster "
        "| peak MB | transformers | weights' bandwidth |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = row["results"]["fmjax"], best(row)
        share = "-"
        if row["batch"] == 1:
            rate = ours["weight_bytes"] / ((ours["seconds"] - ours["first_token_ms"] / 1e3) / (row["new"] - 1))
            share = f"{rate / (bandwidth or ours['bandwidth']):.0%}"
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['prompt']} | {ours['tokens_per_second']:.0f} "
            f"| {theirs['tokens_per_second']:.0f} | **{theirs['times_slower']:.1f}x** | {ours['first_token_ms']:.0f} "
            f"| {theirs['first_token_ms']:.0f} | {theirs['first_times_slower']:.1f}x | {ours['peak_mb']:.0f} "
            f"| {theirs['peak_mb']:.0f} | {share} |"
        )
    return "\n".join(lines)


def best(row: dict) -> dict:
    """The faster way of transformers."""
    ways = [v for k, v in row["results"].items() if k != "fmjax" and "error" not in v]
    return min(ways, key=lambda way: way["seconds"])


def plot(rows: list[dict], file: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4))
    names = ["{}\nbatch {batch}\nprompt {prompt}".format(row["model"].replace("_", "\n"), **row) for row in rows]
    for offset, (label, side) in enumerate((("transformers", best), ("fmjax", lambda row: row["results"]["fmjax"]))):
        places = [i + 0.4 * offset for i in range(len(rows))]
        axes.bar(places, [side(row)["tokens_per_second"] for row in rows], 0.4, label=label)
    axes.set_xticks([i + 0.2 for i in range(len(rows))], names, fontsize=6)
    axes.set(yscale="log", ylabel="tokens per second")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="*", default=["gpt2-14m", "llama-17m"], choices=list(CONFIGS))
    parser.add_argument("--folders", nargs="*", default=[], help="published folders of weights, measured too")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--prompts", nargs="*", type=int, default=[16, 512], help="lengths in tokens")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--caches", nargs="*", default=["dynamic", "static"], help="ways of transformers")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--bandwidth", type=float, help="of the memory, in bytes per second; default: measured by a copy"
    )
    parser.add_argument("--output", type=pathlib.Path, default=HERE)
    flags = parser.parse_args()
    if flags.worker:
        return work(json.loads(flags.worker))

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {pathlib.Path(folder).name: pathlib.Path(folder).resolve() for folder in flags.folders}
        for name in flags.models:
            folders[name] = pathlib.Path(scratch) / name
            make_folder(name, folders[name], flags.dtype)
        for name, folder in folders.items():
            context = json.loads((folder / "config.json").read_text())
            context = context.get("max_position_embeddings") or context["n_positions"]
            for batch in flags.batches:
                for prompt in flags.prompts:
                    prompt = min(prompt, context - flags.new_tokens)
                    case = dict(folder=str(folder), batch=batch, prompt=prompt, new=flags.new_tokens, dtype=flags.dtype)
                    row = dict(model=name, batch=batch, prompt=prompt, new=flags.new_tokens)
                    row["results"] = measure(case, flags.repeats, flags.caches)
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers")}
    flags.output.mkdir(parents=True, exist_ok=True)
    setting = dict(
        cores=len(os.sched_getaffinity(0)), dtype=flags.dtype, repeats=flags.repeats, python=sys.version.split()[0]
    )
    (flags.output / "results.json").write_text(json.dumps(dict(rows=rows, setting=setting | versions), indent=2) + "\n")
    print(report(rows, flags.bandwidth))
    plot(rows, flags.output / "generation.png")


if __name__ == "__main__":
    main()
