"""GPT-3 (Brown et al. 2020, table 2.1): every published size, dense and locally banded layers in turn.

    python -m fmjax.train --config=configs/gpt3.py --workdir=runs/gpt3_small \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/gpt2/tokenizer.json

The size is the part after a colon, small without one: `--config=configs/gpt3.py:175b`. `configs/gpt3.py:tiny` learns
the Python standard library on two CPU cores in about a minute. Each size has its batch and learning rate from the
table; the mesh splits parameters over all devices, which suits up to 64 of them; larger runs add
`--config.mesh.tensor=8`.

The paper's width of its bands is not stated; 256 is that of its public reproductions. Two rows of the table do not fit
themselves and are mended here: XL has 16 heads of 128 (24 would be wider than the model), 13B a width of 5,120.
"""

from ml_collections import ConfigDict

# layers, width, heads, head size, batch in tokens, learning rate
SIZES = {
    "tiny": (4, 128, 4, 32, 2048, 1e-3),
    "small": (12, 768, 12, 64, 500_000, 6.0e-4),
    "medium": (24, 1024, 16, 64, 500_000, 3.0e-4),
    "large": (24, 1536, 16, 96, 500_000, 2.5e-4),
    "xl": (24, 2048, 16, 128, 1_000_000, 2.0e-4),
    "2.7b": (32, 2560, 32, 80, 1_000_000, 1.6e-4),
    "6.7b": (32, 4096, 32, 128, 2_000_000, 1.2e-4),
    "13b": (40, 5120, 40, 128, 2_000_000, 1.0e-4),
    "175b": (96, 12288, 96, 128, 3_200_000, 0.6e-4),
}


def get_config(size="small"):
    num_layers, hidden_size, num_heads, head_dim, batch, learning_rate = SIZES[size]
    tiny = size == "tiny"
    length = 256 if tiny else 2048
    # 300B tokens in all, warm-up over 375M of them, cosine to a tenth (the paper reaches it at 260B and stays there).
    steps = 300 if tiny else 300_000_000_000 // batch
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": steps, "batch_size": max(8, batch // length // 8 * 8), "log_every": 10,
            "eval_every": 0 if tiny else 1000, "eval_batches": 16, "checkpoint_every": 1000,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "gpt", "num_layers": num_layers, "hidden_size": hidden_size, "num_heads": num_heads,
            "head_dim": head_dim, "max_length": length, "window": 64 if tiny else 256,
            "layer_pattern": ("global", "local"),
            # 50,257 tokens, padded so that the head divides over any mesh and fills whole matrix tiles.
            "vocab_size": None if tiny else 50_304,
            "dtype": "float32" if tiny else "bfloat16", "remat": "none" if tiny else "full",
        },
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": length, "tokenizer": "train:2048" if tiny else "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": learning_rate, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1,
            "clip_norm": 1.0,
            "schedule": {
                "name": "cosine", "warmup_steps": 30 if tiny else 375_000_000 // batch, "final_fraction": 0.1,
            },
        },
    })  # fmt: skip
