"""Preferences: the little model that replies to sums (configs/sft_tiny.py) learns which of two answers is right (DPO).

    python -m fmjax.train --config=configs/sft_tiny.py --workdir=runs/sft_tiny
    python -m fmjax.train --config=configs/dpo_tiny.py:runs/sft_tiny --workdir=runs/dpo_tiny

The model to begin with, which is the reference too, is named after the colon. The pairs are built in
(`fmjax/data/chats/arithmetic.py`): the right sum, and one that is off by 1 to 9. Pairs of your own:
--config.data.source=PAIRS.jsonl, with prompt, chosen and rejected. Another loss is named behind the model:
`--config=configs/dpo_tiny.py:runs/sft_tiny,simpo` (dpo, ipo, kto, orpo; simpo and orpo have no reference).

One core of an Intel Xeon, other work beside it, 2026-11-29: of held-out pairs the right answer gains on its reference
in 78% (loss 0.502; 0.693 at the start); its logarithm of likelihood ends at -2.5. Samples are still sums, and
"12 + 9 = 20." is still wrong. With beta 0.1 and a learning rate of 3e-4 they broke.
"""

from ml_collections import ConfigDict

BETA = {"dpo": 1.0, "ipo": 0.1, "kto": 1.0, "simpo": 2.0, "orpo": 0.1}


def get_config(argument="runs/sft_tiny"):
    model, _, name = argument.partition(",")
    name = name or "dpo"
    objective = {
        "name": name, "beta": BETA[name], "sample_chat": True, "sample_prompts": ("What is 3 + 4?", "What is 12 + 9?"),
        "sample_tokens": 32, "sample_temperature": 0.0,
    }  # fmt: skip
    if name not in ("simpo", "orpo"):
        objective["reference"] = model
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 100, "batch_size": 32, "init_from": model, "log_every": 20, "checkpoint_every": 50,
            "eval_batches": 1,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4,
            "num_kv_heads": 2, "max_length": 256, "tie_embeddings": True,
        },
        "objective": objective,
        "data": {
            "name": "labelled" if name == "kto" else "preferences", "source": "builtin", "sequence_length": 64,
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 5e-5, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 20},
        },
    })  # fmt: skip
