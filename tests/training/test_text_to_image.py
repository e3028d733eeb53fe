"""Pictures drawn from words: by latents of a frozen autoencoder, told by a frozen or a trained encoder of texts."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fmjax
from fmjax import config as configs
from fmjax.checkpoint_files import read_item
from fmjax.commands import cli
from fmjax.commands.keep import keep
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import ConfigError, DataError, InputError
from fmjax.generate import main
from fmjax.training.loop import train
from tests.small_models import random_model

pytestmark = pytest.mark.usefixtures("one_device")

REPOSITORY = pathlib.Path(__file__).parents[2]
VAE = {
    "name": "autoencoder_kl", "widths": (4, 4, 4), "num_blocks": 1, "latent_channels": 4, "norm_groups": 2,
    "mid_attention": False, "image_size": 16, "num_channels": 3,
}  # fmt: skip
TEXT = {"name": "text_tower", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 258, "max_length": 96}
SHORT = {
    "train.steps": "8", "train.batch_size": "8", "train.log_every": "1", "train.checkpoint_every": "2",
    "train.eval_every": "4", "train.eval_batches": "1", "train.sample_every": "4", "train.tensorboard": "false",
    "mesh.data": "1", "model.text.num_layers": "1", "model.text.hidden_size": "16", "model.text.num_heads": "2",
    "model.text.max_length": "96", "objective.sample_copies": "1", "objective.sample_prompts": "two red circles",
    "data.image_size": "16", "data.tokenizer": "bytes", "data.sequence_length": "96", "data.num_examples": "64",
    "data.eval_examples": "8",
}  # fmt: skip
QUIET = {"train.eval_every": "-1", "train.sample_every": "-1"}
JOINT = {
    "model.denoiser.hidden_size": "16", "model.denoiser.num_layers": "2", "model.denoiser.num_heads": "2",
    "model.denoiser.memory_size": "16", "model.denoiser.vector_size": "16", "model.denoiser.image_size": "4",
    "objective.latent_shape": "4,4,4",
}  # fmt: skip
CROSS = {
    "model.denoiser.widths": "4", "model.denoiser.num_heads": "2", "model.denoiser.norm_groups": "2",
    "model.denoiser.memory_size": "16", "model.denoiser.attention": "cross", "model.denoiser.num_layers": "1",
    "model.denoiser.mid": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def parts(one_device, tmp_path_factory):
    """A folder with an autoencoder and an encoder of texts, of random weights."""
    folder = tmp_path_factory.mktemp("parts")
    random_model(VAE, image=ImageCodec(16, 16), objective={"name": "vae"}).save(folder / "vae")
    random_model(TEXT, ByteTokenizer()).save(folder / "text")
    return folder


def frozen_text(parts):
    return {"model.text": "none", "objective.text": str(parts / "text")}


def overrides(**more):
    """Flags of a small run by joint attention."""
    flags = SHORT | JOINT | more
    if "model.text" in more:
        flags = {name: value for name, value in flags.items() if not name.startswith("model.text.")}
    return flags


def config(parts, kept="", **more):
    file = f"{REPOSITORY / 'configs' / 't2i_shapes.py'}:joint+{parts / 'vae'}{kept}"
    return configs.resolve(configs.apply_overrides(configs.load_config_file(file), overrides(**more)))


@pytest.fixture(scope="module")
def straight(parts):
    """A run from beginning to end."""
    workdir = parts / "t2i"
    train(config(parts), workdir, cache_dir=parts / "cache", progress=False)
    return workdir


def metrics(workdir, name):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


def test_latents_are_scaled_by_what_the_first_batch_measured(straight, parts):
    squares = metrics(straight, "train/latent_square")
    assert abs(squares[0] - 1) > 0.1 and all(abs(square - 1) < 0.35 for square in squares[1:])
    carry = fmjax.load(straight).carry
    assert int(carry["measured"]) == 1 and float(carry["scale"]) != 1
    assert all(np.isfinite(metrics(straight, "eval/heldout/loss")))
    folder = straight / "samples" / "8"
    assert sorted(p.name for p in folder.iterdir()) == ["0.png", "all.png"]


def test_frozen_models_in_the_step_are_not_saved(parts, tmp_path):
    """A first stage and a text tower; that a run with others in its step is resumed, test_cut_plugins.py shows."""
    more = frozen_text(parts) | {"train.steps": "2"} | QUIET
    train(config(parts, **more), tmp_path / "run", cache_dir=parts / "cache", progress=False)
    assert metrics(tmp_path / "run", "train/loss") and not metrics(tmp_path / "run", "eval/heldout/loss")
    assert not (tmp_path / "run/samples").exists()  # as it was told
    items = [read_item((tmp_path / "run/checkpoints/2" / name).absolute()) for name in ("params", "train", "ema")]
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(items)[0]]
    assert len(names) > 40 and not any("position_embedding" in name for name in names)


def test_in_parts_it_learns_the_same(straight, parts, tmp_path):
    four = config(parts, **{"train.accumulate_steps": "4"} | QUIET)
    train(four, tmp_path / "parts", cache_dir=parts / "cache", progress=False)
    np.testing.assert_allclose(metrics(tmp_path / "parts", "train/loss"), metrics(straight, "train/loss"), rtol=2e-5)


PROMPTS = ["two red circles", "a small blue square", "two red circles"]


def test_a_prompt_and_a_seed_make_an_image(straight, tmp_path):
    model, options = fmjax.load(straight), dict(seed=3, steps=3, batch_size=1)
    images = model.generate(PROMPTS, **options | {"batch_size": 3})  # among others it is the same as alone
    assert [(image.shape, image.dtype) for image in images] == [((16, 16, 3), np.uint8)] * 3
    np.testing.assert_array_equal(model.generate([PROMPTS[1]], **options)[0], images[1])
    assert (images[0] != images[2]).any() and (images[0] != images[1]).any()  # copies differ
    guided = model.generate([PROMPTS[0]], guidance=4.0, **options)
    other = model.generate([PROMPTS[0]], guidance=4.0, negative="three green rings", **options)
    assert (guided[0] != images[0]).any() and (guided[0] != other[0]).any()
    np.testing.assert_array_equal(model.generate(**options)[0], images[0])  # those of its samples


def test_the_latents_are_decoded_as_by_hand(straight):
    """One step of Euler's method goes along the first velocity to the end."""
    model = fmjax.load(straight)
    image = model.generate([PROMPTS[0]], seed=3, steps=1, sampler="euler")[0]
    number = int(hashlib.blake2b(PROMPTS[0].encode(), digest_size=4).hexdigest(), 16) >> 1
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), number + 1), 0)
    noise = jax.random.normal(jax.random.fold_in(key, 0), (1, 4, 4, 4))
    tokens = model.tokenizer.encode_pair(PROMPTS[0])[0]
    row = np.zeros((2, 1, 96), np.int32)
    row[0, 0, : len(tokens)], row[1, 0, : len(tokens)] = tokens, 1
    stage = model.opened("first_stage")

    @jax.jit
    def decoded(noise):
        velocity = model.module.apply(model.variables, noise, jnp.ones(1), row[0], row[1])
        latents = (noise - velocity) / model.carry["scale"] + model.carry["shift"]
        return stage.apply(latents, method="decode")

    expected = model.codec.decode({"images": np.asarray(decoded(noise)[0])})
    assert np.abs(image.astype(int) - expected).max() <= 1


def test_an_image_is_kept_outside_of_a_mask(straight):
    model = fmjax.load(straight)
    given = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 9:] = 255
    made = model.generate([PROMPTS[0]], init_image=given, mask=mask, steps=3)[0]
    np.testing.assert_array_equal(made[:, :9], given[:, :9])
    assert (made[:, 9:] != given[:, 9:]).any()
    # Of an image that all but the last step leave as it is, what the autoencoder keeps is left.
    stage = model.opened("first_stage")
    through = jax.jit(lambda images: stage.apply(stage.apply(images, method="encode"), method="decode"))
    kept = model.codec.decode({"images": np.asarray(through(model.codec.encode(given)["images"][None])[0])})
    inverted = model.generate([PROMPTS[0]], init_image=given, invert=True, steps=60, sampler="euler")[0]
    assert np.abs(inverted.astype(int) - kept).mean() < 8


def test_a_file_of_prompts_makes_a_folder_that_goes_on(straight, tmp_path, capsys):
    file, output = tmp_path / "prompts.jsonl", tmp_path / "made"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    argv = [f"--model={straight}", f"--prompts={file}", f"--output={output}", "--steps=2", "--num_samples=2"]
    assert cli.run(main, argv) == 0
    images = sorted(output.glob("*.png"))
    assert [path.name for path in images] == ["0_0.png", "0_1.png", "1_0.png", "1_1.png", "2_0.png", "2_1.png"]
    expected = fmjax.load(straight).generate(PROMPTS, num_samples=2, steps=2)
    before = [path.read_bytes() for path in images]
    for path, image in zip(images, expected):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)
            assert picture.text["prompt"] == PROMPTS[int(path.name[0])] and picture.text["seed"] == "0"
    for index in (1, 4):
        images[index].unlink()
    assert cli.run(main, argv) == 0 and "2 files added" in capsys.readouterr().out
    assert [path.read_bytes() for path in images] == before
    assert cli.run(main, argv) == 0 and "complete already" in capsys.readouterr().out
    for more, message in [
        (["--seed=1"], "seed: 0 there, 1 in this call"),
        (["--prompt=x"], "--prompts has all the prompts"),
        ([f"--output={tmp_path / 'x.png'}"], "a folder is written"),
        ([f"--output={tmp_path}"], "no settings.json"),
    ]:
        assert cli.run(main, argv + more) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_drawn_is_refused(straight, parts, tmp_path):
    model = fmjax.load(straight)
    for prompts, message in [
        (["a red circle " * 20], "more than the 96 that .* reads; shorten it"),
        ([" "], "a prompt is empty"),
        ([7], "is a caption, got 7"),
    ]:
        with pytest.raises(InputError, match=message):
            model.generate(prompts)
    for more, message in [
        ({"objective.first_stage": str(tmp_path / "none")}, "first_stage"),
        ({"objective.latent_shape": "8,8,4"}, "latent_shape"),
        ({"model.denoiser.image_size": "8"}, "image_size = 8, and latents"),
        ({"data.image_size": "32"}, "16x16 pixels, and the data"),
        ({"objective.text": str(parts / "text")}, "encoded by one of them"),
        ({"model.denoiser.memory_size": "32"}, "is 16 wide"),
        ({"objective.sample_prompts": "a red circle " * 20}, "sample_prompts has"),
        (frozen_text(parts) | {"data.tokenizer": "train:300"}, "another tokenizer"),
    ]:  # fmt: skip
        with pytest.raises((ConfigError, InputError), match=message):
            train(config(parts, **more), tmp_path / "run", cache_dir=parts / "cache", progress=False)
        assert not (tmp_path / "run").exists()


def test_a_first_stage_that_has_changed_is_refused(straight, parts):
    """By one number among its weights."""
    stage, aside = parts / "vae", parts / "vae_aside"
    make = lambda: fmjax.load(straight).opened("first_stage")
    assert make().module.image_size == 16
    stage.rename(aside)
    try:
        model = fmjax.load(aside)
        leaves, structure = jax.tree.flatten(model.params)
        leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].add(1e-3)
        dataclasses.replace(model, params=structure.unflatten(leaves)).save(stage)
        with pytest.raises(InputError, match="was trained with another objective.first_stage"):
            make()
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        aside.rename(stage)
    make()


def test_pixels_do_without_a_first_stage(parts, tmp_path):
    """By a U-Net that attends to the text."""
    plain = configs.load_config_file(str(REPOSITORY / "configs" / "t2i_shapes.py"))
    small = configs.resolve(configs.apply_overrides(plain, SHORT | CROSS)).to_dict()
    section = small["model"] | {"text": small["model"]["text"] | {"vocab_size": 258}}
    section["denoiser"] |= {"image_size": 16, "num_channels": 3}
    model = random_model(section, ByteTokenizer(), ImageCodec(16, 16), objective=small["objective"])
    model.save(tmp_path / "run")
    image = fmjax.load(tmp_path / "run").generate([PROMPTS[0]], steps=2, sampler="euler", guidance=2.0)[0]
    assert image.shape == (16, 16, 3)


def test_latents_that_are_kept_train_and_are_decoded(parts, tmp_path):
    rows = tmp_path / "rows"
    written = keep(config(parts), rows, rows=20, batch_size=8)
    assert written == {"train": 20, "heldout": 8, "templates": 8, "combinations": 8}
    latents = np.load(rows / "train" / "latents.npy")
    assert latents.shape == (20, 4, 4, 4) and (latents[0] != latents[1]).any()
    file = f"{REPOSITORY / 'configs' / 't2i_shapes.py'}:joint+{parts / 'vae'}@{rows}"
    flags = {name: value for name, value in overrides().items() if not name.startswith("data.")}
    flags |= {"train.steps": "2", "train.eval_every": "2", "train.sample_every": "-1"}
    made = lambda **more: configs.resolve(configs.apply_overrides(configs.load_config_file(file), flags | more))
    train(made(), tmp_path / "run", cache_dir=parts / "cache", progress=False)
    assert np.isfinite(metrics(tmp_path / "run", "eval/heldout/loss")).all()
    assert fmjax.load(tmp_path / "run").generate([PROMPTS[0]], steps=2, guidance=2.0)[0].shape == (16, 16, 3)
    for change, message in [
        ({"data.arrays": "latents:float32[8x8x4]"}, r"is float32\[8, 8, 4\], and it is float32\(4, 4, 4\)"),
        ({"data.arrays": "latents"}, "expected a text such as"),
        ({"data.source": str(tmp_path)}, "no folder 'train'"),
        ({"train.sample_every": "2"}, "cannot sample"),
    ]:
        with pytest.raises((ConfigError, DataError), match=message):
            train(made(**change), tmp_path / "other", cache_dir=parts / "cache", progress=False)
