"""A folder of values goes on by the same models alone, whatever their paths."""

import dataclasses
import json
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

from fmjax.commands.prompt_file import PromptFile
from fmjax.commands.value_folder import complete_folder
from fmjax.data.codecs.image import ImageCodec
from fmjax.errors import InputError
from fmjax.inference.model import Model


class Bias(nn.Module):
    """A number."""


@dataclasses.dataclass(frozen=True)
class Options:
    prior: Any = "runs/prior"
    init_image: Any = None
    num_samples: int = 1
    batch_size: int = 1


def model(number, side=2, **objective):
    config = {"objective": {"name": "flow_matching", **objective}}
    return Model(Bias(), {"bias": jnp.float32(number)}, config, codecs={"image": ImageCodec(side, side, 1)})


def complete(prompts, folder, main, prior, path="runs/prior", stop=None, **options):
    """Completes as a command would that makes the number of each value, `stop` of them at most."""

    class Generator:
        def __init__(self, model):
            pass

        def stages(self, options):
            return {"prior": prior}

        def run(self, prompts, options, only):
            return ((index, str(index)) for index in sorted(only)[:stop])

    write = lambda value, path, facts: path.write_text(value)
    return complete_folder(main, prompts, folder, Generator, Options(path, **options), write)


def test_another_model_by_the_same_path_does_not_go_on(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('"a"\n"b"\n"c"\n')
    prompts, folder = PromptFile(tmp_path / "prompts.jsonl"), tmp_path / "made"
    complete(prompts, folder, model(1), model(2), stop=1)
    assert len(list(folder.glob("*.png"))) == 1
    for other, named in ((dict(prior=model(3)), "prior"), (dict(main=model(4)), "content")):
        with pytest.raises(InputError, match=f"begun with other settings:\n  {named}: '"):
            complete(prompts, folder, **{"main": model(1), "prior": model(2)} | other)
    moved = dataclasses.replace(model(1), source="elsewhere/main")
    complete(prompts, folder, moved, model(2), path="elsewhere/another_name")  # the same ones
    assert len(list(folder.glob("*.png"))) == 3
    assert json.loads((folder / "settings.json").read_text())["paths"]["prior"] == "runs/prior"


def test_another_objective_or_codec_of_the_same_weights_does_not_go_on(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('"a"\n')
    prompts, folder = PromptFile(tmp_path / "prompts.jsonl"), tmp_path / "made"
    complete(prompts, folder, model(1), model(2))
    for other in (model(1, target={"name": "v"}), model(1, side=3)):
        with pytest.raises(InputError, match="begun with other settings:\n  content: '"):
            complete(prompts, folder, other, model(2))


def test_another_image_by_the_same_path_does_not_go_on(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('"a"\n')
    image, moved = tmp_path / "image.png", tmp_path / "moved.png"
    image.write_bytes(b"one")
    prompts, folder = PromptFile(tmp_path / "prompts.jsonl"), tmp_path / "made"
    complete(prompts, folder, model(1), model(2), init_image=str(image))
    image.rename(moved)
    assert complete(prompts, folder, model(1), model(2), init_image=str(moved)) == 0
    moved.write_bytes(b"two")
    with pytest.raises(InputError, match="begun with other settings:\n  init_image: '"):
        complete(prompts, folder, model(1), model(2), init_image=str(moved))
    with pytest.raises(InputError, match="init_image: .*image.png' cannot be read: No such file"):
        complete(prompts, folder, model(1), model(2), init_image=str(image))


def test_another_image_as_a_prompt_by_the_same_path_does_not_go_on(tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(b"one")
    (tmp_path / "prompts.jsonl").write_text(json.dumps(str(image)) + '\n"a red circle"\n')
    prompts, folder = PromptFile(tmp_path / "prompts.jsonl"), tmp_path / "made"
    complete(prompts, folder, model(1), model(2), stop=1)
    image.write_bytes(b"two")
    with pytest.raises(InputError, match="begun with other settings:\n  prompt_files: '"):
        complete(prompts, folder, model(1), model(2))
    image.write_bytes(b"one")
    assert complete(prompts, folder, model(1), model(2)) == 1


def test_a_folder_of_an_older_version_is_told_as_one(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('"a"\n')
    prompts, folder = PromptFile(tmp_path / "prompts.jsonl"), tmp_path / "made"
    folder.mkdir()
    (folder / "settings.json").write_text('{"model": "runs/main", "step": 1}')
    with pytest.raises(InputError, match="begun by an older version of fmjax.*choose another --output"):
        complete(prompts, folder, model(1), model(2))
