"""--image and --audio: files in prompts of models that read them, refused by name of all others."""

import argparse

import numpy as np
import pytest
from small_models import byte_model

from fmjax import generate
from fmjax.commands import cli, media
from fmjax.data.codecs.media import Media
from fmjax.data.digits import CODEC
from fmjax.errors import InputError
from fmjax.inference.prompts import by_part
from tests.classifier import IMAGES, MODEL


@pytest.fixture
def files(tmp_path):
    found = [str(tmp_path / f"{i}.png") for i in range(2)]
    for file, image in zip(found, IMAGES):
        CODEC.write(image, file)
    return found


def prompts(takes, texts=(), model=MODEL, **flags):
    return media.prompts(argparse.Namespace(**flags), model, list(texts), takes)


def test_prompts_are_made_of_texts_and_files(files):
    images = prompts(["image"], image=files)
    assert images == [Media("image", generate.pathlib.Path(file)) for file in files]
    np.testing.assert_array_equal(images[0].encode(CODEC)["images"], CODEC.encode(IMAGES[0])["images"])
    assert prompts(["text", "image"], ["a", "b"], image=files) == list(zip("ab", images))
    assert prompts([], ["a", "b"], byte_model()) == ["a", "b"]


def test_parts_that_do_not_fit_are_refused(files, tmp_path):
    with pytest.raises(InputError, match="give as many of each, got 1 of text, 2 of image"):
        prompts(["text", "image"], ["a"], image=files)
    with pytest.raises(InputError, match="--prompt=a: a prompt of .* is image; leave --prompt out"):
        prompts(["image"], ["a"], image=files)
    with pytest.raises(InputError, match="none.png' cannot be read: No such file"):
        prompts(["image"], image=[str(tmp_path / "none.png")])
    with pytest.raises(InputError, match="takes no image in a prompt, which is of text"):
        prompts(["text"], ["a"], image=files)


def test_a_model_without_the_codec_says_what_it_reads(files):
    for value in (Media("image", generate.pathlib.Path(files[0])), IMAGES[0]):
        with pytest.raises(InputError, match=r"prompt 0 is .*, and Model\(GPT.* reads nothing but texts"):
            by_part(byte_model(), [value], ("image",))


def test_a_model_that_reads_none_refuses_them(tmp_path, capsys):
    with pytest.raises(
        InputError, match=r"--image=a.png: Model\(GPT.* reads no image; it reads tokens alone. Leave the flag"
    ):
        prompts([], model=byte_model(), image=["a.png"])
    with pytest.raises(InputError, match=r"--audio=a.wav: Model\(ViT.* reads no audio; it reads image"):
        prompts(["image"], audio=["a.wav"])
    with pytest.raises(InputError, match="--image has no meaning with --chat"):
        generate.parse(["--model=x", "--chat", "--image=a.png"])
    assert generate.parse(["--model=x", "--image=a.png"]).prompt == ""
    MODEL.save(tmp_path / "model")
    assert cli.run(generate.main, [f"--model={tmp_path / 'model'}", "--image=a.png"]) == 2
    message = "cannot generate: it reads images, and tokens are continued (what it can do: embed, classify)"
    assert message in capsys.readouterr().err


def test_media_in_a_prompt_of_a_text_model_is_an_error():
    model = byte_model()
    for prompt, said in [
        (IMAGES[0], r"an array uint8 of shape \(8, 8, 1\)"),
        (Media("image", IMAGES[0]), "media of modality 'image'"),
        (("what?", Media("image", IMAGES[0])), "a tuple of the text 'what\\?' and media of modality 'image'"),
    ]:
        with pytest.raises(InputError, match=f"prompt 1 must be a text or a list of token ids, got {said}"):
            model.generate(["a", prompt])
