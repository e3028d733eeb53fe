"""A short run of SigLIP 2 ends with a teacher that moves, and is used afterwards: vectors and captions."""

import jax
import numpy as np
import pytest
from PIL import Image

import fmjax
from fmjax import config as configs
from fmjax import generate
from fmjax.commands import cli
from fmjax.data.digits import CODEC, read_digits
from fmjax.errors import InputError
from fmjax.training.loop import train
from tests.objectives.test_siglip2 import DECODER, MODEL, TEXT, VISION

pytestmark = pytest.mark.usefixtures("one_device")

STEPS = 4


def config():
    known = ("image_size", "num_channels", "vocab_size")  # by the data
    rest = lambda part: {name: value for name, value in part.items() if name not in known} | {"max_length": 64}
    vision = {name: value for name, value in rest(VISION).items() if name != "max_length"}
    parts = {"vision": vision, "text": rest(TEXT), "decoder": rest(DECODER), "num_prototypes": 8, "head_size": 8}
    objective = {"name": "siglip2", "num_local": 1, "local_size": 4, "distillation_from": 0.5, "momentum": 0.5}
    return configs.resolve({
        "train": {"steps": STEPS, "batch_size": 16, "log_every": 1, "eval_every": -1, "sample_every": -1},
        "model": MODEL | parts,
        "objective": objective,
        "data": {"name": "digit_captions"},
        "optimizer": {"name": "adamw", "learning_rate": 5e-3},
    })  # fmt: skip


def test_a_run_is_used(tmp_path, capsys):
    workdir = tmp_path / "run"
    train(config(), workdir, cache_dir=tmp_path / "cache", progress=False)
    model = fmjax.load(workdir)
    teacher, student = (tree["vision"]["mask_token"] for tree in (model.carry["teacher"], model.params))
    assert np.abs(teacher - student).max() > 0 and int(model.carry["step"]) == STEPS
    (image,) = [CODEC.decode({"images": image}) for image in read_digits()[0][:1]]
    assert model.embed(images=[image]).shape == model.embed(texts=["one"]).shape == (1, 8)
    options = dict(prefix="a photo", max_new_tokens=5)
    (text,) = model.generate([image], **options)
    assert text == by_hand(model, image, "a photo", 5).strip()
    drawn = model.generate([image], temperature=2.0, num_samples=2, **options)
    assert len(drawn) == 2 and drawn[0] != drawn[1]
    assert model.generate([image, image], temperature=2.0, **options) == drawn  # a second time is a copy, too
    with pytest.raises(InputError, match="more than the decoder writes, 64"):
        model.generate([image], max_new_tokens=65)
    Image.fromarray(image[..., 0]).save(tmp_path / "digit.png")
    argv = [f"--model={workdir}", f"--image={tmp_path / 'digit.png'}", *(f"--{k}={v}" for k, v in options.items())]
    assert cli.run(generate.main, argv) == 0
    assert capsys.readouterr().out == f"{text}\n"


def by_hand(model, image, prefix, count):
    """The likeliest bytes after a prefix, each of all those before it, up to the end."""
    module, images = model.module, CODEC.encode(image)["images"][None]
    seen = jax.jit(lambda: module.apply({"params": model.params}, images, method="seen"))()
    logits = jax.jit(lambda tokens: module.apply({"params": model.params}, seen, tokens, method="caption_logits"))
    tokens = [model.tokenizer.bos_id, *model.tokenizer.encode(prefix)]
    start = len(tokens)
    while len(tokens) < start + count and tokens[-1] != module.decoder.end_id:
        row = np.array([tokens + [0] * (64 - len(tokens))])
        allowed = np.array(logits(row))[0, len(tokens)]
        allowed[[*range(model.tokenizer.vocab_size, module.decoder.vocab_size), module.decoder.mask_id]] = -np.inf
        tokens.append(int(allowed.argmax()))
    return model.tokenizer.decode([token for token in tokens[start:] if token != module.decoder.end_id])
