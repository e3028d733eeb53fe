"""A published decoder distilled into a third of its layers, on text of your own.

    export MODEL=HuggingFaceTB/SmolLM2-135M-Instruct
    python -m fmjax.train --config=configs/distill_smollm2.py:$MODEL --workdir=runs/third --config.data.source=TRAIN.txt
    python -m fmjax.evaluate --model=runs/third --tasks=text:HELDOUT.txt --output=runs/third/heldout
    python -m fmjax.convert --input=runs/third --output=runs/third_hf --to=hf

MODEL is a hub id, a Hugging Face folder, a GGUF file, or a run of one's own. The student begins with every third of its
layers, the first, the fourth and so on (train.init_layers), and all that is no layer. `--config.train.init_layers=
--config.train.init_from=none` begins anew, with `--config.data.tokenizer=$MODEL`.

A teacher that is larger than the device, or has many students, says once what it has to say. What it says is kept, of
each token the likeliest, and read behind a `+`:

    python -m fmjax.commands.teach --config=configs/distill_smollm2.py:$MODEL --output=runs/taught --rows=2000 \\
        --top_k=64 --config.data.source=TRAIN.txt
    python -m fmjax.train --config=configs/distill_smollm2.py:$MODEL+runs/taught --workdir=runs/third_kept

What a student is worth with a teacher and without, begun with layers and anew: experiments/distilled.
"""

from ml_collections import ConfigDict

from fmjax.interop.loading import model_section


def get_config(model="HuggingFaceTB/SmolLM2-135M-Instruct"):
    model, _, kept = model.partition("+")
    student = dict(model_section(model))
    student["num_layers"] = max(1, student["num_layers"] // 3)
    layers = tuple(range(0, 3 * student["num_layers"], 3))
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 200, "batch_size": 4, "init_from": model, "init_layers": layers, "log_every": 5, "eval_batches": 4,
            "checkpoint_every": 100, "keep_last": 1,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": student,
        "objective": {
            "name": "distillation", "teacher": "" if kept else model, "weight": 1.0, "temperature": 1.0,
            "sample_tokens": 60,
        },
        "data": {"name": "kept", "source": kept} if kept else {"source": "builtin", "sequence_length": 128},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-4, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 10, "final_fraction": 0.1},
        },
    })  # fmt: skip
