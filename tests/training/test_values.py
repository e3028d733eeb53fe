"""A run that makes images: killed, resumed, in parts, over devices it is the same run, and its images are seen."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import fmjax
from fmjax import config as configs
from fmjax.checkpoint_files import read_item
from fmjax.commands import cli
from fmjax.commands.values import generator_named_by
from fmjax.data.codecs.image import ImageCodec
from fmjax.generate import main
from fmjax.inference.denoising import Denoising
from fmjax.training.loop import train

pytestmark = pytest.mark.usefixtures("one_device")

REPOSITORY = pathlib.Path(__file__).parents[2]
SHORT = {
    "train.steps": "12", "train.batch_size": "16", "train.log_every": "1", "train.checkpoint_every": "4",
    "train.eval_every": "0", "train.sample_every": "6", "train.tensorboard": "false", "model.num_layers": "2",
    "model.hidden_size": "16", "model.num_heads": "2", "objective.sample_copies": "1",
    "objective.sample_prompts": "3,7",
}  # fmt: skip

QUIET = {"train.eval_every": "-1", "train.sample_every": "-1"}


def config(**more):
    plain = configs.load_config_file(str(REPOSITORY / "configs" / "dit_digits.py"))
    return configs.resolve(configs.apply_overrides(plain, SHORT | more))


def state(workdir):
    items = {n: read_item(workdir.absolute() / "checkpoints" / "12" / n) for n in ("params", "train", "ema")}
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_flatten_with_path(items)[0]}


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def straight(one_device, tmp_path_factory):
    """A run from beginning to end, on one device."""
    workdir = tmp_path_factory.mktemp("values") / "dit"
    train(config(**{"mesh.data": "1", "mesh.fsdp": "1"}), workdir, cache_dir=workdir.parent, progress=False)
    return workdir


def test_cut_it_goes_on_bitwise(straight, tmp_path):
    """As it does when killed: `test_faults.py`."""
    shutil.copytree(straight, tmp_path / "run")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    train(config(), tmp_path / "run", cache_dir=tmp_path, progress=False)
    assert losses(tmp_path / "run") == losses(straight)
    ours, theirs = state(tmp_path / "run"), state(straight)
    assert ours.keys() == theirs.keys() and len(ours) > 40
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    for step in (6, 12):
        names = sorted(p.name for p in (straight / "samples" / str(step)).iterdir())
        assert names == ["0.png", "1.png", "all.png"]
        for name in names:
            images = [(folder / "samples" / str(step) / name).read_bytes() for folder in (tmp_path / "run", straight)]
            assert images[0] == images[1]


def test_in_parts_on_eight_devices_it_learns_the_same(straight, tmp_path, one_device, monkeypatch):
    monkeypatch.setattr(jax, "devices", one_device)  # all, and in this test alone
    split = config(**{"train.accumulate_steps": "2", "mesh.data": "2", "mesh.fsdp": "2", "mesh.tensor": "2"} | QUIET)
    train(split, tmp_path / "split", cache_dir=tmp_path, progress=False)
    np.testing.assert_allclose(losses(tmp_path / "split"), losses(straight), rtol=2e-5)


def test_the_model_makes_images_of_labels(straight, tmp_path, capsys):
    model = fmjax.load(straight)
    images = model.generate([3, 7], seed=0, steps=4)
    assert [(image.shape, image.dtype) for image in images] == [((8, 8, 1), np.uint8)] * 2
    assert model.codec.height == 8 and model.step == 12
    model.save(tmp_path / "copy")
    np.testing.assert_array_equal(fmjax.load(tmp_path / "copy").generate([3, 7], seed=0, steps=4), images)
    argv = [f"--model={straight}", "--prompt=3", "--prompt=7", "--steps=4"]
    assert generator_named_by(argv) is Denoising and generator_named_by(["--prompt=x"]) is None
    assert cli.run(main, [*argv, f"--output={tmp_path / 'two.png'}"]) == 0
    model.codec.write_all(images, tmp_path / "expected.png")
    written = (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "two.png") as picture, Image.open(tmp_path / "expected.png") as expected:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
        told = picture.text
    assert told["model"] == str(straight) and told["prompt"] == '["3", "7"]' and told["sampler"] == "heun"
    assert (told["steps"], told["seed"], told["guidance"]) == ("4", "0", "1.0") and "negative" not in told
    assert f"two.png ({len(written)} bytes): 2 x image of 8 x 8 x 1\n" in capsys.readouterr().out
    # A file is there whole, or as it was.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageCodec, "write_all", lambda _, values, path: path.write_bytes(b"half") / 0)
        with pytest.raises(ZeroDivisionError):
            main([*argv, f"--output={tmp_path / 'two.png'}"])
    assert (tmp_path / "two.png").read_bytes() == written and not list(tmp_path.glob(".*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmjax.load.load", lambda *_, **__: pytest.fail("loaded before the file's name was looked at"))
        for output, message in [
            ("two.wav", "this model's values are written as .png files"),
            ("no/two.png", "does not exist"),
            ("", "is a folder; give a file to write"),
        ]:
            assert cli.run(main, [*argv, f"--output={tmp_path / output}"]) == 2
            assert message in capsys.readouterr().err
    for wrong, message in [
        ([*argv, "--output=two.png", "--prompt=ten"], "no class 'ten'"),
        ([*argv, "--output=two.png", "--stepz=3"], "did you mean '--steps'"),
        ([*argv, "--output=two.png", "--steps=many"], "--steps"),
        ([*argv, "--output=two.png", "--sampler=rk4"], "sampler = 'rk4'"),
        (argv, "--output"),
    ]:
        capsys.readouterr()
        assert cli.run(main, wrong) == 2
        assert message in capsys.readouterr().err
