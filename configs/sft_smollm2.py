"""Fine-tuning a published chat model on chats or instructions of your own, in its own template.

    export MODEL=HuggingFaceTB/SmolLM2-135M-Instruct
    python -m fmjax.train --config=configs/sft_smollm2.py:$MODEL --workdir=runs/sft --config.data.source=CHATS.jsonl
    python -m fmjax.generate --model=runs/sft --chat
    python -m fmjax.convert --input=runs/sft --output=runs/sft_hf --to=hf

MODEL is a hub id, a Hugging Face folder, or a run of one's own; CHATS.jsonl has messages, prompt and completion,
instructions (Alpaca) or conversations (ShareGPT), a record a line; .json and .parquet do as well. A base model has no
template: --config.data.chat_template=FILE.jinja gives it one. The loss is of the assistant's tokens alone; longer chats
than a row are left out and counted.
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
        "objective": {
            "name": "causal_lm", "sample_chat": True, "sample_prompts": ("What is 12 + 9?",), "sample_tokens": 60,
            "sample_temperature": 0.0,
        },
        "data": {"name": "chats", "source": "builtin", "sequence_length": 512},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-5, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 10, "final_fraction": 0.1},
        },
    })  # fmt: skip
