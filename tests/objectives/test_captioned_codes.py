"""Captions and codes in one row: the loss in numpy, what is refused, and a run of two stages that draws pictures of
captions and ranks them."""

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
from fmjax.data.digits import CODEC
from fmjax.errors import ConfigError, InputError
from fmjax.inference import pairs, reranking, values
from fmjax.inference.drawn_codes import DrawnCodes
from fmjax.models.dalle import Dalle
from fmjax.models.discrete_vae import DiscreteVAE
from fmjax.models.vit import ViT
from fmjax.objectives.base import OtherModel
from fmjax.objectives.captioned_codes import CaptionedCodes
from fmjax.training.loop import train
from tests import two_towers
from tests.small_models import random_model

ROWS, TEXT, PLACES = 3, 4, 9


class Stage:
    """A first stage whose codes are the pixels."""

    num_codes, image_size, num_channels = 5, 3, 1
    codes = images_of = None

    def apply(self, variables, x, method):
        return x.reshape(len(x), PLACES).astype(jnp.int32)


def test_the_loss_is_an_eighth_of_a_token_and_seven_eighths_of_a_code():
    rng = np.random.default_rng(0)
    codes, tokens = rng.integers(0, 5, (ROWS, 3, 3, 1)), rng.integers(1, 7, (ROWS, TEXT)).astype(np.int32)
    segments = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.int32)
    weights = np.array([1, 1, 0], np.float32)
    batch = {"images": codes.astype(np.float32), "tokens": tokens, "segment_ids": segments, "loss_weights": weights}
    text, image = rng.normal(size=(ROWS, TEXT, 7)), rng.normal(size=(ROWS, PLACES, 5))

    def apply(variables, tokens, segment_ids, codes, train, rngs, method):
        given = [jnp.asarray(x, jnp.float32) for x in (text, image)]
        return tuple((x, {"kernel": jnp.eye(x.shape[-1])}) for x in given)

    models = {"first_stage": OtherModel(Stage())}
    sums = CaptionedCodes("a run")(apply, {}, batch, None, False, models=models)
    nats = lambda logits, targets: (
        -np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), targets[..., None], -1)[..., 0]
    )
    texts = nats(text, tokens)[(segments > 0) & (weights > 0)[:, None]]
    images = nats(image, codes.reshape(ROWS, PLACES))[:2]
    mean = lambda pair: pair[0] / pair[1]
    np.testing.assert_allclose(mean(sums["text"]), texts.mean(), rtol=1e-5)
    np.testing.assert_allclose(mean(sums["image"]), images.mean(), rtol=1e-5)
    np.testing.assert_allclose(sum(map(mean, sums["loss"])), texts.mean() / 8 + 7 * images.mean() / 8, rtol=1e-5)
    right = (image.argmax(-1) == codes.reshape(ROWS, PLACES))[:2].mean()
    np.testing.assert_allclose(mean(sums["accuracy"]), right, rtol=1e-5)


def test_rows_without_their_caption_learn_codes_alone():
    """Those that a row's own key says, in training alone."""
    rows, seen = 400, {}
    segments = np.ones((rows, TEXT), np.int32)
    batch = {
        "images": np.zeros((rows, 3, 3, 1), np.float32), "tokens": segments, "segment_ids": segments,
        "loss_weights": np.ones(rows, np.float32), "keys": jax.random.split(jax.random.key(0), rows),
    }  # fmt: skip

    def apply(variables, tokens, segment_ids, codes, train, rngs, method):
        seen[train] = np.asarray(segment_ids)
        return tuple((jnp.zeros((rows, n, 8)), {"kernel": jnp.eye(8)}) for n in (TEXT, PLACES))

    for trains in (True, False):
        objective = CaptionedCodes("a run", label_dropout=0.25)
        sums = objective(apply, {}, batch, None, trains, models={"first_stage": OtherModel(Stage())})
        assert sums["text"][1] == seen[trains].sum() and sums["image"][1] == rows * PLACES
    assert (seen[False] == 1).all() and (seen[True].min(axis=1) == seen[True].max(axis=1)).all()
    assert 0.67 < seen[True].mean() < 0.83


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="first_stage is empty: .* configs/vqgan_shapes.py makes"):
        CaptionedCodes()
    with pytest.raises(ConfigError, match="objective.image_share = 1.5 must be from 0 to 1"):
        CaptionedCodes("a run", image_share=1.5)
    module = Dalle(num_layers=1, hidden_size=8, num_heads=2, num_codes=5, num_places=16, vocab_size=9, max_length=4,
                   mask_kernel=3)  # fmt: skip
    with pytest.raises(ConfigError, match="has 5 codes, 9 an image; set model.num_places = 9"):
        CaptionedCodes("a run").check_models(module, {"first_stage": OtherModel(Stage())})
    with pytest.raises(ConfigError, match="is DiscreteVAE without|is ViT without"):
        CaptionedCodes("a run").check_models(module, {"first_stage": OtherModel(ViT())})
    rows = lambda **row: types.SimpleNamespace(train=[row], tokenizer=None)
    with pytest.raises(ConfigError, match="reads images with captions, and rows of these data have images"):
        CaptionedCodes("a run").check(module, rows(images=1))
    with pytest.raises(ConfigError, match="which DiscreteVAE is not; take model.name = 'dalle'"):
        CaptionedCodes("a run").check(DiscreteVAE(), rows(images=1, tokens=1, segment_ids=1))


def test_the_nearest_images_of_each_prompt_are_kept(monkeypatch):
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    scorer = types.SimpleNamespace(module=types.SimpleNamespace(encode_images=1, encode_texts=1), tokenizer=1)
    monkeypatch.setattr(values, "lacks_reading", lambda model: None)
    embed = lambda model, texts=None, images=None: np.array([vectors[x] for x in texts] if texts else images)
    monkeypatch.setattr(pairs, "embed", embed)
    images = [[0.6, 0.8], [0.8, 0.6], [1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, -1.0]]
    assert reranking.best(scorer, ["a", "b"], images, 3, 2) == [2, 1, 3, 4]
    with pytest.raises(InputError, match="keep = 4: of 3 images"):
        reranking.best(scorer, ["a", "b"], images, 3, 4)
    with pytest.raises(InputError, match="no vectors of images and texts to rank by"):
        reranking.best(types.SimpleNamespace(module=ViT()), ["a"], images, 6, 1)
    monkeypatch.setattr(values, "lacks_reading", lambda model: "it has no codec of images")
    with pytest.raises(InputError, match="cannot rank images: it has no codec of images"):
        reranking.best(scorer, ["a", "b"], images, 3, 2)


FIRST_STAGE = {"name": "discrete_vae", "widths": [8, 8], "num_blocks": 1, "num_codes": 12, "code_size": 4,
               "image_size": 8, "num_channels": 1}  # fmt: skip


def test_a_run_of_two_stages_draws_pictures_of_captions(tmp_path, monkeypatch, capsys):
    first, clip, workdir = (tmp_path / name for name in ("first", "clip", "run"))
    random_model(FIRST_STAGE, image=CODEC, objective={"name": "discrete_vae"}).save(first)
    two_towers.MODEL.save(clip)
    config = configs.resolve({
        "train": {"batch_size": 8, "steps": 2, "log_every": 1, "eval_every": -1, "tensorboard": False, "ema_decay": 0.9,
                  "accumulate_steps": 2},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "model": {"name": "dalle", "num_layers": 2, "hidden_size": 16, "num_heads": 2, "num_codes": 12,
                  "num_places": 16, "masks": ["row"], "mask_kernel": 3, "dropout": 0.0},
        "objective": {"name": "captioned_codes", "first_stage": str(first), "sample_prompts": ["the digit two"],
                      "sample_copies": 2},
        "data": {"name": "digit_captions", "sequence_length": 40},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip
    train(config, workdir, cache_dir=tmp_path / "cache", progress=False)
    assert Image.open(workdir / "samples/2/all.png").size == (17, 8)

    model = fmjax.load(workdir)
    options = dict(num_samples=3, batch_size=3, top_k=6, seed=4)
    images = model.generate(["the digit two"], **options)
    assert images[0].shape == (8, 8, 1) and any((one != images[0]).any() for one in images[1:])
    among = model.generate(["a handwritten one", "the digit two"], **options | {"batch_size": 2})
    np.testing.assert_array_equal(among[3:], images)
    split = fmjax.load(workdir, mesh={"data": 4, "tensor": 2}).generate(["the digit two"], **options)
    assert np.mean([(a == b).mean() for a, b in zip(split, images)]) > 0.9  # up to draws that rounding decides
    with pytest.raises(InputError, match=r"has \d+ tokens, more than the 40 that .* reads; shorten it"):
        model.generate(["the digit " + "two " * 10])
    with pytest.raises(InputError, match="is a caption, got 3"):
        model.generate([3])
    with pytest.raises(InputError, match="makes images of captions: give it some"):
        model.generate()

    output = tmp_path / "best.png"
    flags = [f"--{name}={value}" for name, value in options.items()]
    told = [f"--model={workdir}", f"--output={output}", "--prompt=the digit two", *flags]
    assert cli.run(generate.main, [*told, f"--rerank={clip}"]) == 0
    scorer = fmjax.load(clip)
    cosines = scorer.embed(texts=["the digit two"]) @ scorer.embed(images=images).T
    np.testing.assert_array_equal(np.asarray(Image.open(output)), images[cosines.argmax()][..., 0])
    assert Image.open(output).text["rerank"] == str(clip)
    assert cli.run(generate.main, [*told, "--best=2"]) == 2
    assert cli.run(generate.main, [*told, f"--rerank={clip}", "--best=4"]) == 2
    # A scorer that cannot rank is refused before any image is made.
    monkeypatch.setattr(DrawnCodes, "run", lambda *_, **__: pytest.fail("images are made"))
    for scorer, message in [
        (workdir, "no vectors of images and texts to rank by"), (tmp_path / "none", "none"),
    ]:  # fmt: skip
        capsys.readouterr()
        assert cli.run(generate.main, [*told, f"--rerank={scorer}"]) == 2
        assert message in capsys.readouterr().err
    long = f"--prompt={'the digit two ' * 4}"
    assert cli.run(generate.main, [*told[:2], long, *told[3:], f"--rerank={clip}"]) == 2
