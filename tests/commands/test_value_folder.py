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
    num_samples: int = 1
    batch_size: int = 1


def model(number):
    config = {"objective": {"name": "flow_matching"}}
    return Model(Bias(), {"bias": jnp.float32(number)}, config, codecs={"image": ImageCodec(2, 2, 1)})


def complete(prompts, folder, main, prior, path="runs/prior", stop=None):
    """Completes as a command would that makes the number of each value, `stop` of them at most."""

    class Generator:
        def __init__(self, model):
            pass

        def stages(self, options):
            return {"prior": prior}

        def run(self, prompts, options, only):
            return ((index, str(index)) for index in sorted(only)[:stop])

    write = lambda value, path, facts: path.write_text(value)
    return complete_folder(main, prompts, folder, Generator, Options(path), write)


def test_another_model_by_the_same_path_does_not_go_on(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('"a"\n"b"\n"c"\n')
    prompts, folder = PromptFile(tmp_path / "prompts.jsonl"), tmp_path / "made"
    complete(prompts, folder, model(1), model(2), stop=1)
    assert len(list(folder.glob("*.png"))) == 1
    for other, named in ((dict(prior=model(3)), "prior"), (dict(main=model(4)), "content")):
        with pytest.raises(InputError, match=f"begun with other settings:\n  {named}: '"):
            complete(prompts, folder, **{"main": model(1), "prior": model(2)} | other)
    complete(prompts, folder, model(1), model(2), path="elsewhere/prior")  # the same one
    assert len(list(folder.glob("*.png"))) == 3
    assert json.loads((folder / "settings.json").read_text())["prior"].startswith("prior ")
