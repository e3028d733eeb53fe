"""Multiple choice by fmjax and by lm-evaluation-harness's own Hugging Face backend, with the same weights:

python experiments/scoring_speed/run.py --data=HELLASWAG.jsonl [--folders DIR ...] [--help]

A process a library loads the same folder of weights; after a warm-up they score the same contexts and endings in turns,
never at the same time, texts to log-likelihoods. Writes results.json and prints the table of the README.
"""

import argparse
import contextlib
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
RANDOM = "gpt2-6x384"


def questions(file: str, limit: int) -> list[tuple[str, list[str]]]:
    """(context, endings) of HellaSwag's file, a space in front of each ending."""
    with open(file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:limit]
    return [
        (
            f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".strip(),
            [f" {e}" for e in row["endings"]],
        )
        for row in rows
    ]


def make_random(folder: pathlib.Path, texts: list[str]) -> None:
    """A GPT-2 of random weights, and a byte-level BPE of 8,000 pieces trained on the texts."""
    import tokenizers
    import torch
    import transformers

    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=8000, special_tokens=["<|endoftext|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    fields = dict(n_layer=6, n_embd=384, n_head=6, vocab_size=8000, n_positions=512, bos_token_id=0, eos_token_id=0)
    # Ten times the usual scale, so that hardly two endings are about equally likely.
    config = transformers.GPT2Config(**fields, initializer_range=0.2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Fmjax:
    def __init__(self, case):
        import fmjax
        from fmjax.tasks.protocol import Score

        self.model = fmjax.load(case["folder"])
        self.requests = [Score(c, e) for c, endings in questions(case["data"], case["limit"]) for e in endings]

    def run(self, batch: int) -> list[float]:
        from fmjax.tasks.answers import answer

        return [one.loglikelihood for one in answer(self.requests, self.model)]


class Harness:
    """`batch`: sequences of a forward pass."""

    def __init__(self, case):
        import torch
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = HFLM(pretrained=case["folder"], device="cpu", dtype="float32", batch_size=1)
        pairs = [(c, e) for c, endings in questions(case["data"], case["limit"]) for e in endings]
        self.requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]

    def run(self, batch: int) -> list[float]:
        self.model.batch_size_per_gpu = batch
        return [one for one, _ in self.model.loglikelihood(self.requests, disable_tqdm=True)]


def work(case: dict) -> None:
    """A worker: a line with a batch size in, a line of JSON out."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    side = {"fmjax": Fmjax, "harness": Harness}[case["library"]](case)
    for line in sys.stdin:
        start = time.perf_counter()
        found = side.run(int(line))
        print(json.dumps(dict(seconds=time.perf_counter() - start, loglikelihoods=found)), file=out, flush=True)


def start_worker(case: dict, library: str):
    log = tempfile.TemporaryFile("w+")
    worker = subprocess.Popen(
        [sys.executable, __file__, "--worker", json.dumps(case | dict(library=library))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=log,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1]), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    worker.log = log
    return worker


def ask(worker, batch: int) -> dict:
    """Raises SystemExit with what the worker said last, where it has ended."""
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(f"{batch}\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        worker.log.seek(0)
        raise SystemExit(f"a worker ended without an answer:\n{worker.log.read()[-2000:]}")
    return json.loads(answer)


def measure(case: dict, batches: list[int], repeats: int) -> dict:
    """Medians of both, the harness's at each batch size, and the ratio of ours to the best of them."""
    ours, theirs = start_worker(case, "fmjax"), start_worker(case, "harness")
    try:
        first, *_ = [ask(ours, 0), *(ask(theirs, batch) for batch in batches)]
        runs, others = [], {batch: [] for batch in batches}
        for _ in range(repeats):
            runs.append(ask(ours, 0))
            for batch in batches:
                others[batch].append(ask(theirs, batch))
    finally:
        for worker in (ours, theirs):
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
            worker.wait()
    median = statistics.median(run["seconds"] for run in runs)
    medians = {batch: statistics.median(run["seconds"] for run in found) for batch, found in others.items()}
    best = min(medians, key=medians.get)
    return dict(
        fmjax_seconds=median,
        fmjax_first_seconds=first["seconds"],
        harness_seconds=medians,
        best_batch=best,
        times_faster=medians[best] / median,
        **agreement(runs[0]["loglikelihoods"], others[best][0]["loglikelihoods"]),
    )


def agreement(mine: list[float], theirs: list[float], options: int = 4) -> dict:
    """The largest difference of two log-likelihoods, and how many questions get the same answer."""
    chosen = [
        [max(range(options), key=side[at : at + options].__getitem__) for at in range(0, len(side), options)]
        for side in (mine, theirs)
    ]
    same = sum(a == b for a, b in zip(*chosen)) / len(chosen[0])
    return dict(largest_difference=max(abs(a - b) for a, b in zip(mine, theirs)), same_choices=same)


def report(rows: list[dict]) -> str:
    """The table of the README."""
    lines = [
        "| model | documents | fmjax s | with compilation | harness s (batch) | faster | largest difference "
        "| same choices |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        best = row["best_batch"]
        lines.append(
            f"| {row['model']} | {row['documents']} | {row['fmjax_seconds']:.2f} | {row['fmjax_first_seconds']:.2f} "
            f"| {row['harness_seconds'][best]:.2f} ({best}) | **{row['times_faster']:.1f}x** "
            f"| {row['largest_difference']:.1g} | {row['same_choices']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--data", help="HellaSwag's validation file, JSON lines")
    parser.add_argument("--folders", nargs="*", default=[], help=f"models that fmjax loads, measured beside {RANDOM}")
    parser.add_argument("--limit", type=int, default=1000, help="documents")
    parser.add_argument("--batches", nargs="*", type=int, default=[8, 32, 128], help="the harness's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=HERE)
    flags = parser.parse_args()
    if flags.worker:
        return work(json.loads(flags.worker))
    if not flags.data:
        parser.error("--data: give HellaSwag's validation file")

    rows = []
    asked = questions(flags.data, flags.limit)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {RANDOM: pathlib.Path(scratch) / RANDOM}
        make_random(folders[RANDOM], [text for context, endings in asked for text in (context, *endings)])
        for folder in flags.folders:
            import fmjax

            name = pathlib.Path(folder).name
            # Anew, for the tokenizer's files that `transformers` wants.
            folders[name] = pathlib.Path(scratch) / name
            fmjax.load(folder).save(folders[name], format="hf")
        for name, folder in folders.items():
            case = dict(folder=str(folder), data=str(pathlib.Path(flags.data).resolve()), limit=flags.limit)
            row = dict(model=name, documents=len(asked), **measure(case, flags.batches, flags.repeats))
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    packages = ("jax", "torch", "transformers", "lm-eval")
    setting = dict(cores=len(os.sched_getaffinity(0)), repeats=flags.repeats, python=sys.version.split()[0])
    setting |= {name: importlib.metadata.version(name) for name in packages}
    flags.output.mkdir(parents=True, exist_ok=True)
    (flags.output / "results.json").write_text(json.dumps(dict(rows=rows, setting=setting), indent=2) + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()
