"""Codes of a first stage, hidden and predicted: the loss in numpy, what is refused, and a run of two stages that draws
pictures."""

import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fmjax
from fmjax import config as configs
from fmjax import generate
from fmjax.commands import cli
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.digits import CODEC
from fmjax.diffusion.masked import Masking
from fmjax.errors import ConfigError, InputError
from fmjax.layers.modulation import NO_LABEL
from fmjax.models.maskgit import MaskGIT
from fmjax.models.vit import ViT
from fmjax.objectives.base import OtherModel
from fmjax.objectives.first_stage import codes_of, images_of
from fmjax.objectives.masked_codes import MaskedCodes, without_condition
from fmjax.training.loop import train
from fmjax.training.program import make_program
from fmjax.training.step import with_keys
from tests.small_models import random_model

BOOK = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
COUNTS = np.array([2.0, 1.0, 4.0], np.float32)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A first stage of images [2, 2, 2] whose vectors are the pixels."""

    image_size: int = 2
    num_channels: int = 2

    encode = decode = None

    def apply(self, variables, x, method):
        return x.reshape(len(x), 4, 2) if method == "encode" else x.reshape(len(x), 2, 2, 2)


FIRST = OtherModel(Pairs(), {}, {}, {"counts": COUNTS, "sums": BOOK * COUNTS[:, None]})


def batch(rows, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (rows, 4))
    images = (BOOK[codes] + rng.uniform(-0.2, 0.2, (rows, 4, 2))).reshape(rows, 2, 2, 2).astype(np.float32)
    data = {"images": images, "labels": rng.integers(0, 5, rows, np.int32), "loss_weights": np.ones(rows, np.float32)}
    return codes, with_keys(data, jax.random.key(seed))


def test_the_loss_is_the_cross_entropy_of_the_codes_that_are_hidden():
    codes, data = batch(2_000)
    np.testing.assert_array_equal(codes_of(FIRST, data["images"]), codes)
    np.testing.assert_array_equal(images_of(FIRST, codes), BOOK[codes].reshape(-1, 2, 2, 2))
    data["loss_weights"][:500] = 0
    rng, asked = np.random.default_rng(1), []
    logits = rng.normal(size=(2_000, 4, 3)).astype(np.float32)

    def apply(variables, codes, classes, train, rngs, method):
        asked.append((np.asarray(codes), np.asarray(classes)))
        return jnp.asarray(logits), {"kernel": jnp.eye(3)}

    sums = MaskedCodes("a run", Masking("cosine"))(apply, {}, data, None, False, models={"first_stage": FIRST})
    shown, labels = asked.pop()
    hidden = shown == 3
    assert (shown[~hidden] == codes[~hidden]).all() and not hidden[:500].any()
    # Of t uniform, sin(pi t / 2) are hidden.
    assert hidden[500:].mean() == pytest.approx(2 / np.pi, abs=0.02)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(logs, codes[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(sums["loss"], (each[hidden].sum(), hidden.sum()), rtol=1e-5)
    right = (logits.argmax(-1) == codes)[hidden].sum()
    np.testing.assert_allclose(sums["accuracy"], (right, hidden.sum()))
    np.testing.assert_array_equal(labels, data["labels"])  # all of them, where nothing is learnt

    dropping = MaskedCodes("a run", Masking("cosine"), label_dropout=0.25)
    dropping(apply, {}, data, jax.random.key(0), True, models={"first_stage": FIRST})
    labels = asked.pop()[1]
    dropped = labels == NO_LABEL
    assert dropped.mean() == pytest.approx(0.25, abs=0.03) and (labels[~dropped] == data["labels"][~dropped]).all()


def test_of_a_caption_that_is_dropped_nothing_is_left():
    condition = {"source_tokens": jnp.array([[5, 6], [7, 0]]), "source_segment_ids": jnp.array([[1, 1], [1, 0]])}
    found = without_condition(condition, jnp.array([True, False]))
    np.testing.assert_array_equal(found["source_segment_ids"], [[0, 0], [1, 0]])
    assert without_condition({}, jnp.array([True])) == {}


def test_what_does_not_fit_is_refused():
    for fields, message in [
        (dict(first_stage=""), "first_stage is empty: .* configs/vqgan_shapes.py makes"),
        (dict(process="flow"), "is of numbers, and objective masked_codes of tokens"),
        (dict(label_dropout=1.0), "objective.label_dropout=1.0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            MaskedCodes(**{"first_stage": "a run"} | fields)
    objective = MaskedCodes("a run", sample_prompts=(7,))
    objective.check_models(MaskGIT(num_codes=3, num_places=4), {"first_stage": FIRST})
    with pytest.raises(ConfigError, match="has 3 codes, 4 an image; set model.num_places = 4"):
        objective.check_models(MaskGIT(num_codes=3, num_places=5), {"first_stage": FIRST})
    with pytest.raises(ConfigError, match="first_stage = 'a run' is Pairs without a codebook"):
        objective.check_models(MaskGIT(), {"first_stage": OtherModel(Pairs())})
    rows = lambda **row: types.SimpleNamespace(train=[row], tokenizer=None, codecs={"label": LabelCodec(5)})
    with pytest.raises(ConfigError, match="reads images, and rows of these data have tokens"):
        objective.check(MaskGIT(), rows(tokens=1))
    with pytest.raises(ConfigError, match="which ViT is not; take model.name = 'maskgit'"):
        objective.check(ViT(), rows(images=1))
    with pytest.raises(ConfigError, match="sample_prompts has 7: a label is a whole number from 0 to 4"):
        objective.check(MaskGIT(num_classes=5), rows(images=1, labels=1))


FIRST_STAGE = {"name": "conv_autoencoder", "hidden_size": 8, "inner_size": 4, "num_blocks": 1, "num_halvings": 1,
               "code_size": 4, "image_size": 8, "num_channels": 1}  # fmt: skip
OBJECTIVE = {"name": "vq_autoencoder", "num_codes": 12}


def first_stage(seed):
    """A random autoencoder with a random codebook."""
    book = np.random.default_rng(seed).normal(size=(12, 4)).astype(np.float32)
    carry = {"counts": np.ones(12, np.float32), "sums": book}
    return random_model(FIRST_STAGE, image=CODEC, carry=carry, objective=OBJECTIVE)


def test_a_run_of_two_stages_draws_pictures_of_captions(tmp_path):
    first, workdir = tmp_path / "first", tmp_path / "run"
    first_stage(0).save(first)
    config = configs.resolve({
        "train": {"batch_size": 8, "steps": 2, "log_every": 1, "eval_every": -1, "tensorboard": False, "ema_decay": 0.9,
                  "accumulate_steps": 2},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "model": {"name": "maskgit", "num_layers": 2, "hidden_size": 16, "num_heads": 2, "num_codes": 12,
                  "num_places": 16},
        "objective": {"name": "masked_codes", "first_stage": str(first), "sample_prompts": ["the digit two"],
                      "sample_copies": 2},
        "data": {"name": "digit_captions", "sequence_length": 40},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip
    train(config, workdir, cache_dir=tmp_path / "cache", progress=False)
    assert Image.open(workdir / "samples/2/all.png").size == (17, 8)
    model = fmjax.load(workdir)

    output = tmp_path / "two.png"
    options = dict(guidance=2.0, steps=3, seed=4, batch_size=1)
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert cli.run(generate.main, [f"--model={workdir}", f"--output={output}", "--prompt=the digit two", *flags]) == 0
    (image,) = model.generate(["the digit two"], **options)
    np.testing.assert_array_equal(np.asarray(Image.open(output)), image[..., 0])
    # The same alone, among others, and on a mesh; no two copies are alike.
    among = model.generate(["a handwritten one", "the digit two", "the digit two"], **options | {"batch_size": 3})
    np.testing.assert_array_equal(among[1], image)
    assert (among[2] != image).any()
    split = fmjax.load(workdir, mesh={"data": 4, "tensor": 2}).generate(["the digit two"], **options)[0]
    np.testing.assert_allclose(split.astype(int), image, atol=1)
    with pytest.raises(InputError, match=r"has \d+ tokens, more than the 40 that .* reads; shorten it"):
        model.generate(["the digit " + "two " * 10])
    with pytest.raises(InputError, match="is a caption, got 3"):
        model.generate([3])

    # A plan knows the codebook's shape without reading it.
    shapes = make_program(config, model.module, fmjax.assemble.open_data(config, tmp_path / "cache").train[0],
                          abstract=True).models["first_stage"].carry  # fmt: skip
    assert shapes["sums"].shape == (12, 4) and isinstance(shapes["counts"], jax.ShapeDtypeStruct)
    # Another codebook is another first stage.
    shutil.rmtree(first)
    first_stage(1).save(first)
    with pytest.raises(InputError, match="first_stage"):
        train(config, workdir, cache_dir=tmp_path / "cache", progress=False)
    shutil.rmtree(first)
    with pytest.raises(InputError, match="needs its objective.first_stage = .*, as it was trained with it"):
        fmjax.load(workdir).generate(["the digit two"])
