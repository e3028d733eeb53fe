"""--image and --audio: for models that read them, refused by name of all others."""

import argparse

import numpy as np
import pytest
from small_models import byte_model

from fmjax import generate
from fmjax.commands import cli, media
from fmjax.data.digits import CODEC
from fmjax.errors import InputError
from tests.classifier import IMAGES, MODEL


def test_files_are_read_by_the_codecs_of_the_run(tmp_path):
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    for file, image in zip(files, IMAGES):
        CODEC.write(image, file)
    np.testing.assert_array_equal(media.read(argparse.Namespace(image=files), MODEL), IMAGES[:2])
    assert media.read(argparse.Namespace(prompt="a"), byte_model()) == []
    with pytest.raises(InputError, match="none.png' cannot be read as an image"):
        media.read(argparse.Namespace(image=[str(tmp_path / "none.png")]), MODEL)


def test_a_model_that_reads_none_refuses_them(tmp_path, capsys):
    with pytest.raises(InputError, match=r"--image=a.png: Model\(GPT.* reads no image; it reads tokens alone. Leave the flag"):
        media.read(argparse.Namespace(image=["a.png"]), byte_model())
    with pytest.raises(InputError, match=r"--audio=a.wav: Model\(ViT.* reads no audio; it reads image"):
        media.read(argparse.Namespace(audio=["a.wav"]), MODEL)
    with pytest.raises(InputError, match="--image has no meaning with --chat"):
        generate.parse(["--model=x", "--chat", "--image=a.png"])
    assert generate.parse(["--model=x", "--image=a.png"]).prompt == ""
    MODEL.save(tmp_path / "model")
    assert cli.run(generate.main, [f"--model={tmp_path / 'model'}", "--image=a.png"]) == 2
    assert "cannot generate: it reads images, and tokens are continued (what it can do: embed, classify)" in capsys.readouterr().err
