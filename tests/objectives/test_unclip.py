"""DALL-E 2: what its prior learns, in numpy; what is refused; and a run of each stage, which together draw captions."""

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
from fmjax.data.digits import CODEC
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import ConfigError, InputError
from fmjax.inference import unclip
from fmjax.models.unclip import EmbeddingToImage, Upsampler
from fmjax.models.unet import UNet
from fmjax.objectives.base import OtherModel
from fmjax.objectives.unclip import EmbeddingDiffusion, Upsampling
from fmjax.tasks.made import references
from fmjax.tasks.runner import run_tasks
from fmjax.training.loop import train
from fmjax.training.step import with_keys
from tests import two_towers
from tests.small_models import random_model

ROWS, WIDTH = 4_000, 4


class Clip:
    """Vectors of images are their pixels; of texts, their first tokens."""

    image_size = None

    def apply(self, variables, *images, method, tokens=None, segment_ids=None):
        if method == "encode_images":
            return images[0].reshape(len(images[0]), WIDTH)
        memory = jnp.broadcast_to(tokens[..., None], (*tokens.shape, WIDTH)).astype(jnp.float32)
        return {"memory": memory, "memory_mask": segment_ids, "vector": memory[:, 0]}


def test_the_prior_learns_vectors_told_what_the_clip_says_of_captions():
    rng, asked = np.random.default_rng(0), {}
    images = rng.normal(size=(ROWS, 2, 2, 1)).astype(np.float32)
    tokens, segments = rng.integers(1, 9, (ROWS, 3), np.int32), np.array([[1, 1, 0]] * ROWS, np.int32)
    batch = {"images": images, "tokens": tokens, "segment_ids": segments, "loss_weights": np.ones(ROWS, np.float32)}
    batch = with_keys(batch, jax.random.key(0))

    def apply(variables, vectors=None, method=None, **told):
        if method == "from_embedding":
            return 3 * vectors
        asked.update(told)
        return jnp.zeros((ROWS, WIDTH))

    objective = EmbeddingDiffusion(text="a CLIP", label_dropout=0.25)
    sums = objective(apply, {}, batch, jax.random.key(0), True, models={"text": OtherModel(Clip())})
    # The target is the prepared vector itself, of which the module said 0.
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], (9 * images**2).mean(), rtol=1e-5)
    dropped = ~np.asarray(asked["memory"]).any((1, 2))
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(asked["memory"][~dropped], np.repeat(tokens[~dropped, :, None], WIDTH, axis=2))
    np.testing.assert_allclose(asked["vector"], np.where(dropped[:, None], 0.0, np.ones((ROWS, WIDTH))), atol=1e-5)
    np.testing.assert_array_equal(asked["memory_mask"], np.where(dropped[:, None], 0, segments))


def test_the_noise_of_small_images_is_none_of_what_the_large_are_mixed_with():
    rows, shape, seen = 256, (4, 4, 1), {}
    images = {"images": np.zeros((rows, *shape), np.float32), "loss_weights": np.ones(rows, np.float32)}
    batch = with_keys(images, jax.random.key(0))

    def apply(variables, inputs=None, times=None, small=None, method=None, **_):
        if method == "side":
            return 2
        sigma = Upsampling().process.sigma(times).reshape(-1, 1, 1, 1)
        seen.update(small=np.asarray(small), noise=np.asarray(inputs / sigma))
        return 0 * inputs

    Upsampling(small_noise=0.5)(apply, {}, batch, jax.random.key(1), True)
    small, noise = seen["small"].reshape(rows, -1), seen["noise"].reshape(rows, -1)
    assert small.std() == pytest.approx(0.5, abs=0.05) and noise.std() == pytest.approx(1, abs=0.05)
    each = np.corrcoef(small.T, noise.T)[: small.shape[1], small.shape[1] :]
    assert abs(each).max() < 0.3
    with pytest.raises(ConfigError, match="label_dropout = 0.1: upsampling drops nothing"):
        Upsampling(label_dropout=0.1)


def test_a_prior_reads_as_many_tokens_as_its_clip():
    """Where vectors are made, captions are as long as the CLIP says."""
    methods = dict.fromkeys(("encode_images", "encode_texts", "text_states"))
    clip = lambda n: OtherModel(types.SimpleNamespace(
        **methods, projection_size=16, text=types.SimpleNamespace(hidden_size=16, max_length=n)
    ))  # fmt: skip
    objective, module = EmbeddingDiffusion(text="a CLIP"), types.SimpleNamespace(embedding_size=16, max_length=24)
    objective.check_models(module, {"text": clip(24)})
    with pytest.raises(ConfigError, match="model.max_length = 24, and 'a CLIP' reads 40 tokens of a caption"):
        objective.check_models(module, {"text": clip(40)})


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="objective.text is empty: .* configs/clip_shapes.py makes"):
        EmbeddingDiffusion()
    net = dict(num_classes=0, widths=(8,), attention=("none",), mid="none", norm_groups=4, image_size=8)
    with pytest.raises(ConfigError, match="attends to nothing"):
        EmbeddingToImage(UNet(**net, num_channels=3))
    with pytest.raises(ConfigError, match="num_channels = 3 and out_channels = None: it is given two images"):
        Upsampler(UNet(**net, num_channels=3))
    with pytest.raises(ConfigError, match="small_size = 3 has to divide the images' 8"):
        Upsampler(UNet(**net, num_channels=2, out_channels=1), small_size=3)
    with pytest.raises(ConfigError, match="num_classes = 3; set it to 0"):
        Upsampler(UNet(**net | {"num_classes": 3}, num_channels=2, out_channels=1), small_size=4)


SMALL = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
NET = {"name": "unet", "num_classes": 0, "num_blocks": 1, "norm_groups": 4, "widths": [8], "mid": "none",
       "attention": ["none"], "num_channels": 2, "out_channels": 1, "image_size": 8}  # fmt: skip
BASE = {
    "train": {"batch_size": 8, "log_every": 1, "eval_every": -1, "sample_every": -1, "tensorboard": False, "steps": 1},
    "data": {"name": "digit_captions", "sequence_length": 48}, "optimizer": {"name": "adamw", "learning_rate": 1e-2},
}  # fmt: skip
PROCESS = {"process": {"name": "ddpm", "betas": "cosine"}}


def test_what_options_name_is_opened_by_the_paths():
    """For answers that are kept, and cards: a path says nothing of what lies there."""
    loaded = []

    def stage(generator):
        objective = types.SimpleNamespace(generator=generator, makes="image")
        return types.SimpleNamespace(objective=objective, codec=None, codecs={}, kept={}, open_path=opened)

    def opened(path):
        loaded.append(path)
        return stage({"p": "embeddings", "d": "embedded_images"}[path])

    decoder, upsampler = stage("embedded_images"), stage("upsampled_images")
    for model, options, names in [
        (decoder, unclip.DecoderOptions(), []),
        (decoder, unclip.DecoderOptions(prior="p"), ["prior"]),
        (upsampler, unclip.UpsamplerOptions(prior="p"), []),
        (upsampler, unclip.UpsamplerOptions(decoder="d"), ["decoder"]),
        (upsampler, unclip.UpsamplerOptions(decoder="d", prior="p"), ["decoder", "prior"]),
    ]:
        kind = unclip.EmbeddedImages if model is decoder else unclip.UpsampledImages
        found = kind(model).stages(options)
        assert list(found) == names and kind(model).stages(options) == found
    assert loaded == ["p", "d", "p"]  # each once
    with pytest.raises(InputError, match="which is not a run of objective embedding_diffusion"):
        unclip.EmbeddedImages(stage("embedded_images")).stages(unclip.DecoderOptions(prior="d"))


def assert_judged_anew(decoder, folder):
    """A task's images are made again once another prior lies at the path, of which the card tells."""
    prior, cards = folder / "one_prior", []
    task = f"made_nearest:own:steps=2:guidance=2.0:prior_steps=2:prior={prior}"
    for step, lines in ((2, 2), (2, 2), (1, 4)):
        shutil.copytree(folder / "prior", prior, ignore=shutil.ignore_patterns("2") if step == 1 else None)
        again = dataclasses.replace(decoder, kept={})
        (result,) = run_tasks(again, [task], limit=2, answers_dir=folder / "answers").values()
        cards.append(result.details["card"]["prior"]["weights"])
        (answers,) = (folder / "answers").glob("*.jsonl")
        assert len(answers.read_text().splitlines()) == lines
        shutil.rmtree(prior)
    assert cards[0] == cards[1] != cards[2]


def test_three_stages_draw_pictures_of_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "TRAINING_ROWS", 20)
    own = dict(cache_dir=tmp_path / "cache", progress=False)
    at = lambda name: str(tmp_path / name)
    run = lambda name, **sections: train(configs.resolve(BASE | sections), tmp_path / name, **own)
    section = two_towers.SECTION | {"projection_size": 16}  # as wide as the states of texts
    random_model(section, ByteTokenizer(), image=CODEC).save(at("clip"))
    run(
        "prior", train=BASE["train"] | {"steps": 2, "checkpoint_every": 1, "ema_decay": 0.9},
        mesh={"data": 2, "fsdp": 2, "tensor": 2}, data=BASE["data"] | {"tokenizer": at("clip")},
        model={"name": "prior_transformer", "embedding_size": 16, "max_length": 48, **SMALL},
        objective={"name": "embedding_diffusion", "text": at("clip"), **PROCESS},
    )  # fmt: skip
    one = fmjax.load(at("prior"))
    first, second = one.generate(["the digit two"], num_samples=2, steps=2, guidance=2.0)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5) and (first != second).any()

    # The others on one device.
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: devices[:1])
    run(
        "decoder", train=BASE["train"] | {"sample_every": 1},
        model={"name": "embedding_to_image", "embedding_size": 16,
               "denoiser": {"name": "mmdit", "patch_size": 2, "memory_size": 8, "vector_size": 16, **SMALL}},
        objective={"name": "embedded_images", "text": at("clip"), "sample_copies": 2, **PROCESS},
    )  # fmt: skip
    assert Image.open(tmp_path / "decoder/samples/1/all.png").size == (17, 17)
    upsampler = {"name": "upsampler", "small_size": 4, "denoiser": NET}
    random_model(upsampler, image=CODEC, objective={"name": "upsampling", **PROCESS}).save(at("upsampler"))

    decoder = fmjax.load(at("decoder"))
    assert_judged_anew(decoder, tmp_path)
    options = dict(num_samples=2, steps=2, prior_steps=2, seed=1)
    images = decoder.generate(["the digit two"], prior=at("prior"), guidance=2.0, **options)
    assert images[0].shape == (8, 8, 1) and (images[0] != images[1]).any()
    assert decoder.generate(images, steps=2)[0].shape == (8, 8, 1)
    with pytest.raises(InputError, match="by itself: give prior, a run of objective embedding_diffusion"):
        decoder.generate(["the digit two"], steps=2)
    with pytest.raises(InputError, match="which is not a run of objective embedding_diffusion"):
        decoder.generate(["the digit two"], steps=2, prior=at("decoder"))
    output = tmp_path / "two.png"
    told = [f"--model={at('upsampler')}", f"--decoder={at('decoder')}", f"--prior={at('prior')}", "--steps=2"]
    told += ["--decoder_steps=2", "--prior_steps=2", "--prompt=the digit two", "--num_samples=2", f"--output={output}"]
    assert cli.run(generate.main, told) == 0
    assert Image.open(output).size == (17, 8)
