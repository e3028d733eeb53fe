"""Masked diffusion over text (MDLM, Sahoo et al. 2024): an encoder learns Python's standard library by what is hidden.

    python -m fmjax.train --config=configs/mdlm_tiny.py --workdir=runs/mdlm_tiny

`eval/loss` is a bound on the negative log-likelihood in nats a token, of the same tokens that a causal model is asked
for, and compares with its loss at the same tokenizer. The last token of the vocabulary hides others. No run has been
measured to its end.
"""

from ml_collections import ConfigDict

VOCABULARY = 2048


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1000, "batch_size": 16, "log_every": 10, "eval_every": 250, "eval_batches": 20,
            "sample_every": 500, "checkpoint_every": 500, "ema_decay": 0.999,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "bert", "num_layers": 4, "hidden_size": 128, "num_heads": 4, "max_length": 128, "dropout": 0.0,
            "attention_dropout": 0.0, "next_sentence": False, "vocab_size": VOCABULARY + 1, "unroll": 4,
        },
        "objective": {"name": "masked_diffusion", "mask_id": VOCABULARY, "weighting": "elbo"},
        "data": {"source": "builtin", "tokenizer": f"train:{VOCABULARY}", "sequence_length": 128},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.01, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 100},
        },
    })  # fmt: skip
