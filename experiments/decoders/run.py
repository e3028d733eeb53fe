"""GPT-2, LLaMA and Magneto at equal compute: `python experiments/decoders/run.py --data=FILE [--runs=DIR]`.

Trains each with three learning rates, keeps the best by held-out loss, draws `loss.png` and writes `results.json`.
"""

import argparse
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

# The MLP of LLaMA has three products where the others have two: 344 is two thirds of their 512.
MODELS = {
    "GPT-2": ("gpt3.py:tiny", {"model__window": "none", "model__layer_pattern": ""}),
    "LLaMA": (
        "llama3.py:tiny",
        {"model__num_kv_heads": 4, "model__intermediate_size": 344, "model__rope_theta": 10000.0},
    ),
    "Magneto": ("magneto.py:tiny", {}),
}
LEARNING_RATES = (1e-3, 3e-3, 6e-3)
COMMON = {
    "train__steps": 500, "train__batch_size": 16, "train__eval_every": 50, "train__log_every": 10,
    "data__sequence_length": 128, "model__max_length": 128, "data__tokenizer": "train:1024", "model__unroll": 4,
    "optimizer__b2": 0.98, "optimizer__weight_decay": 0.1, "optimizer__clip_norm": 1.0,
    "optimizer__schedule__name": "cosine", "optimizer__schedule__warmup_steps": 50,
    "optimizer__schedule__final_fraction": 0.1,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a text file or folder")
    parser.add_argument("--runs", default="runs/decoders", type=pathlib.Path, help="where the runs are kept")
    flags = parser.parse_args()
    found = {}
    for name, (config, overrides) in MODELS.items():
        for rate in LEARNING_RATES:
            workdir = flags.runs / f"{name.lower()}_{rate:g}"
            found[name, rate] = runs.train(
                config, workdir, **COMMON, **overrides, optimizer__learning_rate=rate, data__source=flags.data
            )
    losses = {f"{name}, {rate:g}": runs.last(metrics, "eval/loss") for (name, rate), metrics in found.items()}
    best = {name: min(LEARNING_RATES, key=lambda rate: losses[f"{name}, {rate:g}"]) for name in MODELS}
    flops = {name: runs.last(found[name, rate], "perf/model_flops_per_second") for name, rate in best.items()}
    seconds = {name: runs.last(found[name, rate], "perf/seconds_per_step") for name, rate in best.items()}
    curves = {f"{name} ({best[name]:g})": runs.curve(found[name, best[name]], "eval/loss") for name in MODELS}
    runs.plot(HERE / "loss.png", curves, "held-out loss, nats per token", ylim=(None, 5))
    flops = {name: flops[name] * seconds[name] for name in MODELS}
    runs.save(HERE, {"held_out_loss": losses, "best_learning_rate": best, "flops_per_step": flops})


if __name__ == "__main__":
    main()
