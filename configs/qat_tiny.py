"""A decoder trained for few bits: its kernels are rounded in every step, and the gradients go past the rounding.

    python -m fmjax.train --config=configs/llama_tiny.py --workdir=runs/llama_tiny
    python -m fmjax.train --config=configs/qat_tiny.py:runs/llama_tiny --workdir=runs/qat_tiny
    python -m fmjax.compress --model=runs/qat_tiny --method=int4 --block=32 --output=runs/qat_tiny_int4

The compressed model gives the logits that the run has trained. Without a path (`--config=configs/qat_tiny.py`) the run
begins anew. `--config.weights.format=int8` and `nf4` are other formats; `--config.weights.activations=int8` rounds what
goes into the kernels too.
"""

from ml_collections import ConfigDict

from fmjax.interop.loading import model_section

FRESH = {
    "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4, "num_kv_heads": 2,
    "max_length": 128,
}  # fmt: skip


def get_config(model=None):
    tokenizer = {"tokenizer": "bytes"} if model is None else {}
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300, "batch_size": 16, "log_every": 10, "checkpoint_every": 100, "eval_batches": 4,
            "init_from": model,
        },
        "mesh": {"data": -1},
        "model": FRESH if model is None else model_section(model),
        "weights": {"name": "fake_quantization", "format": "int4", "block": 32},
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": 128} | tokenizer,
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1,
            "schedule": {"name": "cosine", "warmup_steps": 30},
        },
    })  # fmt: skip
