"""Vectors of 200 sentences by fmjax and by PyTorch, the same BERT of random weights (6 layers of 384), texts in:

python experiments/throughput/embedding.py

A process a side; after a warm-up they take turns. PyTorch sorts the sentences by length and takes 16, 32 or 64 at a
time. Prints medians of the seconds and of the processor's (of all threads), and by how much the vectors differ.
"""

import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from run import environment  # noqa: E402

WORDS = "the model reads a text and gives one vector for each sentence of it that is then compared with others".split()
SIDES = ("fmjax", 16, 32, 64)


def sentences(count: int = 200) -> list[str]:
    """Of 8 to 40 words."""
    draw = random.Random(0)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(8, 40))) for _ in range(count)]


def make_weights(folder: pathlib.Path) -> None:
    import torch
    import transformers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(WORDS))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)


def fmjax_side(folder: str):
    import fmjax

    model = fmjax.load(folder)
    return lambda texts: model.embed(texts)


def torch_side(folder: str, batch: int):
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()

    def embed(texts):
        order, found = sorted(range(len(texts)), key=lambda i: len(texts[i])), [None] * len(texts)
        for start in range(0, len(texts), batch):
            part = order[start : start + batch]
            inputs = tokenizer([texts[i] for i in part], padding=True, return_tensors="pt")
            with torch.inference_mode():
                hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
                vectors = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
            for i, vector in zip(part, vectors):
                found[i] = vector
        return np.stack(found)

    return embed


def work(folder: str, side: str) -> None:
    """A worker: a line in, a line of JSON out."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    embed, texts = fmjax_side(folder) if side == "fmjax" else torch_side(folder, int(side)), sentences()
    for _ in sys.stdin:
        seconds, processor = time.perf_counter(), time.process_time()
        vectors = embed(texts)
        answer = time.perf_counter() - seconds, time.process_time() - processor, vectors[:3].tolist()
        print(json.dumps(answer), file=out, flush=True)


def main(repeats: int = 5) -> None:
    if sys.argv[1:]:
        return work(*sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        make_weights(pathlib.Path(folder))
        start = lambda side: subprocess.Popen(
            [sys.executable, __file__, folder, str(side)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(),
        )  # fmt: skip
        workers = {side: start(side) for side in SIDES}

        def ask(side):
            workers[side].stdin.write("\n")
            workers[side].stdin.flush()
            return json.loads(workers[side].stdout.readline())

        vectors = {side: ask(side)[2] for side in SIDES}
        turns = [{side: ask(side) for side in SIDES} for _ in range(repeats)]
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    for side in SIDES:
        seconds, processor = (statistics.median(turn[side][i] for turn in turns) for i in (0, 1))
        pairs = zip(vectors[side], vectors["fmjax"])
        differ = max(abs(a - b) for one, other in pairs for a, b in zip(one, other))
        print(f"{side}: {seconds:.2f} s, {processor:.2f} s of processors; vectors differ by {differ:.0e}", flush=True)


if __name__ == "__main__":
    main()
