"""A run on chats: the loss of replies alone, and a model that answers in its template and ends where replies end."""

import pathlib

import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.assemble import open_data
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.tokenizers.templates import TURNS
from fmjax.interop.initial import with_stop_ids
from fmjax.training.loop import train

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "sft_tiny.py"


def test_the_tiny_config_trains_and_its_run_replies_in_the_template(tmp_path):
    overrides = {
        "train.steps": "6", "train.eval_every": "6", "train.eval_batches": "0", "train.sample_every": "6",
        "train.batch_size": "8", "train.tensorboard": "False", "data.sequence_length": "64", "model.num_layers": "1",
        "model.hidden_size": "16", "model.intermediate_size": "32", "objective.sample_tokens": "4",
        "optimizer.learning_rate": "3e-2",
    }  # fmt: skip
    config = configs.resolve(configs.apply_overrides(configs.load_config_file(str(CONFIG)), overrides))
    metrics = train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    samples = (tmp_path / "run" / "samples.txt").read_text()
    assert "What is 3 + 4?\n" in samples
    model = fmjax.load(tmp_path / "run")
    assert model.tokenizer.chat_templates == {"default": TURNS} and model.eos_ids == (ByteTokenizer.eos_id,)
    asked = model.encode_chat([{"role": "user", "content": "What is 1 + 1?"}])
    assert asked == [256, *b"user\nWhat is 1 + 1?", 257, 256, *b"assistant\n"]
    # What eval/loss is the mean of: the held-out replies, each chat here in a row of its own.
    rows = open_data(config, tmp_path / "cache").evaluation["heldout"]
    chats = []
    for row in (rows[index] for index in range(len(rows))):
        for segment in range(1, row["segment_ids"].max() + 1):
            place = row["segment_ids"] == segment
            alone = {name: np.zeros(64, row[name].dtype) for name in ("tokens", "targets", "loss_weights")}
            for name in alone:
                alone[name][: place.sum()] = row[name][place]
            chats.append(alone)
    tokens, targets, weights = (np.stack([one[name] for one in chats]) for name in chats[0])
    logits = np.asarray(model.apply(tokens), np.float64)
    chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    entropy = np.log(np.exp(logits).sum(axis=-1)) - chosen
    mean = (entropy * weights).sum() / weights.sum()
    assert len(chats) > 20 and metrics["eval/loss"] == pytest.approx(mean, rel=1e-5)


def test_what_ends_replies_ends_what_is_generated():
    tokenizer = ByteTokenizer()
    published = {"architecture": "A", "generation": {"eos_token_id": 7, "top_k": 3}}
    assert with_stop_ids(published, [257], tokenizer) is published and with_stop_ids({}, (), None) == {}
    found = with_stop_ids(published, [65], tokenizer)
    assert found == {"architecture": "A", "generation": {"eos_token_id": [7, 65, 257], "top_k": 3}}
    assert with_stop_ids({"eos_token_id": [7]}, [65], tokenizer) == {"eos_token_id": [7, 65, 257]}
    assert with_stop_ids({}, [65], tokenizer) == {"bos_token_id": 256, "pad_token_id": None, "eos_token_id": [65, 257]}
