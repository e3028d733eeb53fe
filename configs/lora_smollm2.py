"""Low-rank adapters of a published chat model on chats or instructions of your own, in its own template.

    export MODEL=HuggingFaceTB/SmolLM2-135M-Instruct
    python -m fmjax.train --config=configs/lora_smollm2.py:$MODEL --workdir=runs/lora --config.data.source=CHATS.jsonl
    python -m fmjax.generate --model=$MODEL --adapter=runs/lora --chat
    python -m fmjax.convert --input=runs/lora --output=runs/lora_peft --to=peft

What it reads is as of `configs/sft_smollm2.py`. All kernels of the blocks are adapted. With `--config.weights.base=nf4`
those kernels are kept in four bits (QLoRA), with `--config.weights.dora=True` it is DoRA. The optimizer has two numbers
for each of the adapters, and none for what stays. `--to=hf` writes the merged model in place of the adapter.

One core of an EPYC, SmolLM2-135M-Instruct from its GGUF file (Q4_1), JAX 0.10.2, 2026-11-30: with
`--config.train.batch_size=1 --config.data.sequence_length=256 --config.train.steps=3` a step took 2.1 seconds, with
`--config.weights.base=nf4` 2.6, and one of all parameters (`configs/sft_smollm2.py`) 3.4; the process had at most 1.79,
1.73 and 3.63 GB.
"""

from ml_collections import ConfigDict

from fmjax.interop.loading import model_section


def get_config(model="HuggingFaceTB/SmolLM2-135M-Instruct"):
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 100, "batch_size": 4, "init_from": model, "log_every": 5, "eval_batches": 4,
            "checkpoint_every": 100, "keep_last": 1,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": model_section(model),
        "weights": {"name": "lora", "rank": 16, "alpha": 32.0, "patterns": ("blocks/.*kernel$",), "base": "float"},
        "objective": {
            "name": "causal_lm", "sample_chat": True, "sample_prompts": ("What is 12 + 9?",), "sample_tokens": 60,
            "sample_temperature": 0.0,
        },
        "data": {"name": "chats", "source": "builtin", "sequence_length": 512},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-4, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 10, "final_fraction": 0.1},
        },
    })  # fmt: skip
