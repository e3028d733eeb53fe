"""BERT-style and RoBERTa-style pretraining: `python experiments/masked_lm/run.py --data=FILE [--runs=DIR]`.

Compares the accuracy on masked held-out tokens with always guessing the commonest token; draws `accuracy.png` and
writes `results.json`.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

COMMON = {
    "train__steps": 1500, "train__batch_size": 32, "train__eval_every": 100, "data__sequence_length": 64,
    "data__heldout_fraction": 0.05, "model__max_length": 64, "optimizer__learning_rate": 2e-3, "optimizer__b2": 0.98,
    "optimizer__schedule__warmup_steps": 100,
}  # fmt: skip
# A paragraph is a document here: BERT's pairs are sentences of one paragraph, or of two.
MODELS = {
    "BERT": ("bert.py:tiny", {
        "data__tokenizer": "train_wordpiece:1024", "data__document_separator": "\n\n", "data__sentences": "punctuation",
    }),
    "RoBERTa": ("roberta.py:tiny", {"data__tokenizer": "train_bpe:1024", "data__document_separator": "\n\n"}),
}  # fmt: skip


def commonest_token(workdir: pathlib.Path) -> dict[str, float]:
    """Accuracy and loss, on the masked held-out tokens of a run, of the frequencies of its training tokens."""
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir

    config = json.loads((workdir / "config.json").read_text())
    data = open_data(config, cache_dir())
    counts = np.ones(config["model"]["vocab_size"])
    for index in range(2000):
        row = data.train[index]
        np.add.at(counts, row["targets"][row["loss_weights"] > 0], 1)
    rows = data.evaluation["heldout"]
    targets = np.concatenate([rows[i]["targets"][rows[i]["loss_weights"] > 0] for i in range(len(rows))])
    return {
        "accuracy": float(np.mean(targets == counts.argmax())),
        "loss": float(-np.log(counts / counts.sum())[targets].mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a text file, its paragraphs parted by blank lines")
    parser.add_argument("--runs", default="runs/masked_lm", type=pathlib.Path, help="where the runs are kept")
    flags = parser.parse_args()
    curves, results, lines = {}, {}, {}
    for name, (config, overrides) in MODELS.items():
        workdir = flags.runs / name.lower()
        metrics = runs.train(config, workdir, **COMMON, **overrides, data__source=flags.data)
        curves[name] = runs.curve(metrics, "eval/accuracy")
        names = {key for line in metrics for key in line if key.startswith("eval/")}
        results[name] = {key: runs.last(metrics, key) for key in sorted(names)}
        results[name]["commonest token"] = commonest_token(workdir)
        lines[f"commonest token, {name}"] = results[name]["commonest token"]["accuracy"]
    runs.plot(HERE / "accuracy.png", curves, "accuracy on masked held-out tokens", lines, ylim=(0, None))
    runs.save(HERE, results)


if __name__ == "__main__":
    main()
