"""A short run learns which caption belongs to which picture, and is used afterwards."""

import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.data.digit_captions import TEMPLATES, WORDS
from fmjax.data.digits import CODEC, read_digits
from fmjax.training.loop import train

pytestmark = pytest.mark.usefixtures("one_device")

STEPS = 80


def config():
    tower = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision = {"name": "vit", **tower, "patch_size": 4, "num_classes": 0, "init_std": 0.3}
    return configs.resolve({
        "train": {"steps": STEPS, "batch_size": 64, "log_every": 20, "eval_every": -1},
        "model": {"name": "clip", "vision": vision, "text": {"name": "text_tower", **tower, "init_std": 0.3}},
        "objective": {"name": "contrastive", "positives": "labels", "chunk_size": 16},
        "data": {"name": "digit_captions"},
        "optimizer": {"name": "adamw", "learning_rate": 5e-3},
    })  # fmt: skip


def test_a_run_learns_and_is_used(tmp_path):
    workdir = tmp_path / "run"
    train(config(), workdir, cache_dir=tmp_path / "cache", progress=False)
    model = fmjax.load(workdir)
    images, labels, test = read_digits()
    chosen = np.flatnonzero(test)[:100]
    values = [CODEC.decode({"images": image}) for image in images[chosen]]
    found = model.classify(values, WORDS, templates=TEMPLATES[-1:], top_k=1)
    right = np.mean([best[0][0] == WORDS[label] for best, label in zip(found, labels[chosen])])
    assert right > 0.25  # by chance 0.1, in words that no row had
