"""A fork's view: a model, an objective and data from a package outside fmjax, named by import path, train as they
are."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.commands import cli
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.media import Media
from fmjax.errors import ConfigError, InputError
from fmjax.generate import main
from fmjax.inference.model import Model
from fmjax.training.loop import train
from fmjax.training.metrics import read_metrics

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def my_lab(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def config_with(**sections):
    return configs.resolve({
        "train": {"steps": 60, "batch_size": 16, "log_every": 20, "eval_every": 30, "checkpoint_every": 30,
                  "ema_decay": 0.5},
        "mesh": {"data": 2, "fsdp": 4},
        "model": {"name": "my_lab.models:Bilinear", "rank": 6},
        "objective": {"name": "my_lab.objectives:Huber", "delta": 2.0},
        "data": {"name": "my_lab.data:RatedPairs"},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
    } | sections)  # fmt: skip


def test_a_fork_trains_evaluates_and_resumes_without_touching_the_core(my_lab, tmp_path):
    start = train(config_with(), tmp_path / "run", cache_dir=tmp_path, progress=False)
    assert (tmp_path / "run" / "checkpoints" / "60").is_dir()
    before = read_metrics(tmp_path / "run" / "metrics.jsonl")
    more = config_with(train=config_with().train.to_dict() | {"steps": 300})
    end = train(more, tmp_path / "run", cache_dir=tmp_path, progress=False)
    # It went on from step 60: what was written before stands as it was, and only later steps follow.
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[: len(before)] == before and {row["step"] for row in before} == {1, 20, 30, 40, 60}
    assert min(row["step"] for row in rows[len(before) :]) == 61
    assert end["eval/loss"] < 0.2 * start["eval/loss"]
    assert "perf/tokens_per_second" not in end and "perf/examples_per_second" in end


def test_a_fork_is_told_what_it_got_wrong(my_lab):
    with pytest.raises(ConfigError, match="unknown config key 'model.rnak'; did you mean 'rank'"):
        config_with(model={"name": "my_lab.models:Bilinear", "rnak": 6})
    with pytest.raises(ConfigError, match="has no 'Bilinaer'; did you mean 'Bilinear'"):
        config_with(model={"name": "my_lab.models:Bilinaer"})


def curves_config(**train):
    return configs.resolve({
        "train": {"steps": 80, "batch_size": 16, "log_every": 20, "sample_every": 40, "checkpoint_every": 40} | train,
        "mesh": {"data": 2, "fsdp": 4},
        "model": {"name": "my_lab.curves:CurveAutoencoder"},
        "objective": {"name": "my_lab.curves:Reconstruction"},
        "data": {"name": "my_lab.curves:Sines"},
        "optimizer": {"name": "adamw", "learning_rate": 0.03},
    })  # fmt: skip


def test_a_fork_brings_a_carry_a_codec_and_a_generator_of_its_own(my_lab, tmp_path):
    whole = train(curves_config(), tmp_path / "whole", cache_dir=tmp_path, progress=False)
    assert whole["eval/loss"] < 0.02
    model = fmjax.load(tmp_path / "whole")
    assert model.codec == model.codecs["curve"] and model.codec.scale == 2.0
    assert type(model.codec).__name__ == "CurveCodec"
    assert set(model.abilities) == {"generate"} and float(model.carry["square"].min()) != 1.0
    curves = np.asarray(model.generate([0, 1.0], num_samples=3, seed=1))
    assert curves.shape == (6, 12) and np.ptp(curves[:3], axis=0).max() == 0 and np.ptp(curves[3:], axis=0).max() > 0.1
    np.testing.assert_allclose(np.asarray(model.generate([1.0], num_samples=3, seed=1)), curves[3:])
    samples = tmp_path / "whole" / "samples" / "80"
    np.testing.assert_allclose(model.codec.read(samples / "1.csv"), model.generate(num_samples=2)[1], rtol=1e-3)
    # What it carried goes on where it was.
    train(curves_config(steps=40), tmp_path / "parts", cache_dir=tmp_path, progress=False)
    train(curves_config(), tmp_path / "parts", cache_dir=tmp_path, progress=False)
    again = fmjax.load(tmp_path / "parts")
    for one, two in zip(jax.tree.leaves((model.params, model.carry)), jax.tree.leaves((again.params, again.carry))):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(InputError, match="prompt 0 is 'loud'; expected a factor"):
        model.generate(["loud"])
    with pytest.raises(InputError, match="generate has no option 'num_sample'; did you mean 'num_samples'"):
        model.generate(num_sample=2)
    with pytest.raises(InputError, match="cannot generate: it carries no moments"):
        dataclasses.replace(model, carry=None).generate()


def test_a_forks_generator_takes_texts_and_images(my_lab, tmp_path, capsys):
    from my_lab.retouched import Brightness

    codec = ImageCodec(2, 2, 1)
    config = {"model": {"name": "my_lab.retouched:Brightness"}, "objective": {"name": "my_lab.retouched:Retouching"}}
    model = Model(Brightness(), {"scale": np.float32(1)}, config, codecs={"image": codec})
    image = np.array([[[0], [255]], [[255], [255]]], np.uint8)
    kept, inverted = model.generate([("keep", image), ("invert", Media("image", image))])
    np.testing.assert_array_equal((kept, inverted), (image, 255 - image))
    for wrong, said in [
        (
            [("keep", image), image],
            r"prompt 1 is an array uint8 of shape \(2, 2, 1\); expected a tuple \(text, image\)",
        ),
        ([(image, "keep")], "prompt 0 has an array uint8 .* where a text stands"),
        ([("keep", "invert")], "prompt 0 is the text 'invert', and .* reads image"),
        ([("keep", Media("audio", np.zeros(3)))], "prompt 0 is media of modality 'audio', and .* reads image"),
        ([("keep", np.eye(3, dtype=np.uint8)[None])], "prompt 0: an image is in colour, and images here are grey"),
    ]:
        with pytest.raises(InputError, match=said):
            model.generate(wrong)
    # The command makes the prompts of its flags, and writes texts where texts are made.
    model.save(tmp_path / "image")
    codec.write(image, tmp_path / "in.png")
    argv = ["--prompt=invert", f"--image={tmp_path / 'in.png'}"]
    assert cli.run(main, [f"--model={tmp_path / 'image'}", *argv, f"--output={tmp_path / 'out.png'}"]) == 0
    np.testing.assert_array_equal(codec.read(tmp_path / "out.png"), 255 - image)
    assert cli.run(main, [f"--model={tmp_path / 'image'}", *argv[1:], f"--output={tmp_path / 'out.png'}"]) == 2
    assert "give as many of each, got 0 of text, 1 of image" in capsys.readouterr().err
    config["objective"]["name"] = "my_lab.retouched:Describing"
    Model(Brightness(), {"scale": np.float32(1)}, config, codecs={"image": codec}).save(tmp_path / "text")
    assert cli.run(main, [f"--model={tmp_path / 'text'}", *argv, f"--output={tmp_path / 'out.txt'}"]) == 0
    assert (tmp_path / "out.txt").read_text() == "invert 0.5\n"
