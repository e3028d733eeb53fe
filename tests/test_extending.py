"""The page on extending fmjax: the package that its examples make trains as it stands, and what is wrong with one that
is not like it is said."""

import pathlib
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.assemble import build_module, init_params
from fmjax.commands import cli
from fmjax.compress import __main__ as compress
from fmjax.config import build
from fmjax.errors import ConfigError
from fmjax.objectives import OBJECTIVES
from fmjax.training.loop import train
from tests.small_models import byte_model

pytestmark = pytest.mark.usefixtures("one_device")

PAGE = (pathlib.Path(fmjax.__file__).parent / "README.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's files, on the path."""
    for name, source in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    (tmp_path / "my_lab" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    forget_my_lab()
    yield tmp_path
    forget_my_lab()


def forget_my_lab():
    """Other tests have a package of this name too."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_the_package_of_the_page_learns(folder):
    config = configs.resolve(configs.load_config_file(str(folder / "curve.py")))
    assert config.model.width == 32 and config.optimizer.learning_rate == 0.01
    metrics = train(config, folder / "run", cache_dir=folder, progress=False)
    assert metrics["eval/error"] < 0.1 and metrics["eval/loss"] < 0.01


def test_the_carry_codec_and_generator_of_the_page_make_heights(folder):
    objective, data = {"name": "my_lab.drawing:Drawn", "delta": 0.5}, {"name": "my_lab.drawing:DrawnWaves"}
    metrics = train(resolved(folder, objective=objective, data=data), folder / "run", cache_dir=folder, progress=False)
    assert metrics["eval/error"] < 0.1
    model = fmjax.load(folder / "run")
    assert model.generate([0.5, 1.0]) == pytest.approx(np.sin([1.0, 2.0]), abs=0.15)
    assert len(model.generate()) == 1 and model.generate([0.5], digits=0) == [1.0]
    assert set(model.abilities) == {"generate"}


def test_the_method_of_compression_of_the_page_is_a_method(folder, capsys):
    byte_model().save(folder / "model")
    flags = [f"--model={folder / 'model'}", "--method=my_lab.compression:Signs", "--gain=0.5", "--keep=mlp"]
    assert cli.run(compress.main, [*flags, f"--output={folder / 'signs'}"]) == 0
    before, after = (fmjax.load(folder / name).params["stack"]["blocks"] for name in ("model", "signs"))
    found, kernel = (blocks["attention"]["out"]["kernel"] for blocks in (after, before))
    expected = 0.5 * np.sign(kernel) * np.abs(kernel).mean(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(after["mlp"]["up"]["kernel"], before["mlp"]["up"]["kernel"])
    edited(folder, "compression.py", "def compress(", "def shrink(")
    forget_my_lab()
    assert cli.run(compress.main, [*flags, f"--output={folder / 'other'}"]) == 2
    assert "Signs has no method compress(model" in capsys.readouterr().err


def edited(folder, name, old, new):
    """Writes a file of the package with a part of it replaced."""
    file = folder / "my_lab" / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def resolved(folder, **sections):
    return configs.resolve(configs.load_config_file(str(folder / "curve.py")) | sections)


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("objectives.py", "def inputs", "def imputs", "objective.name = 'my_lab.objectives:Huber': Huber has no method "
         "inputs(batch): What the module is called with, by keyword"),
        ("objectives.py", "def __call__", "def loss",
         "Huber has no method __call__(apply_fn, params, batch, key, train)"),
        ("objectives.py", "params, batch, key, train)", "params, batch)",
         "Huber.__call__(apply_fn, params, batch) cannot be called as __call__(apply_fn, params, batch, key, train): "
         "The "
         "metrics as {name: (sum, weight)}, \"loss\" among them (too many positional arguments)"),
        ("objectives.py", "batch, key, train)", "batch, key, train, carry)", "(missing a required argument: 'carry')"),
        ("data.py", "def open", "def load",
         "data.name = 'my_lab.data:Waves': Waves has no method open(*, seed, cache_dir, "
         "workdir=None, progress=False): The data, read and prepared: an `OpenData`"),
        ("data.py", "workdir=None, progress=False", "workdir=None", "unexpected keyword argument 'progress'"),
        ("models.py", "nn.Module", "object", "'my_lab.models:Curve' is not a dataclass"),
        ("optimizers.py", "def make(", "def made(", "Adam has no method make(total_steps, axes): The update rule"),
        ("optimizers.py", "def make_schedule", "def schedule", "Adam has no method make_schedule(total_steps)"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_what_a_plugin_lacks_is_said_before_anything_begins(folder, file, old, new, message):
    edited(folder, file, old, new)
    with pytest.raises(ConfigError) as error:
        resolved(folder)
    assert message in str(error.value)
    assert "not a dataclass" in message or "fmjax/README.md has the contract" in str(error.value)


def test_a_plugin_of_another_kind_is_refused(folder):
    with pytest.raises(ConfigError, match="Huber is no flax.linen.Module, which it must derive from; fmjax/README.md"):
        resolved(folder, model={"name": "my_lab.objectives:Huber"})
    with pytest.raises(
        ConfigError, match=r"optimizer.schedule.name = .*: Huber has no method make\(learning_rate, total"
    ):
        schedule = {"name": "my_lab.objectives:Huber"}
        resolved(folder, optimizer={"name": "sgd", "learning_rate": 0.1, "schedule": schedule})


def test_an_objective_with_a_carry_takes_it(folder):
    initial = "    def initial(self, module, params, key):\n        pass\n\n"
    edited(folder, "objectives.py", "    def inputs", initial + "    def inputs")
    with pytest.raises(ConfigError, match="carry"):
        resolved(folder)
    forget_my_lab()
    edited(folder, "objectives.py", "batch, key, train)", "batch, key, train, *, carry)")
    assert resolved(folder).objective.name == "my_lab.objectives:Huber"


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("objectives.py", '{"x": batch["x"]}', '{"x": batch["z"]}',
         "objective Huber reads batch['z'], which the rows of these data do not have; they have loss_weights, x, y"),
        ("objectives.py", '- batch["y"]', '- batch["target"]', "objective Huber reads batch['target']"),
        ("objectives.py", '{"x": batch', '{"u": batch',
         "objective Huber calls the model with u, and Curve takes x, train (missing a required argument: 'x')"),
        ("models.py", "train: bool = False", "train",
         "(missing a required argument: 'train'); `train` needs a default"),
        ("objectives.py", 'return {"loss": ((loss * weights).sum(), weights.sum()),', 'return {"loss": loss.mean(),',
         "objective Huber returned an array of shape [] as 'loss'; expected {\"loss\": (sum over the batch, weight"),
        ("objectives.py", 'return {"loss": ((loss * weights).sum(),', 'return {"loss": (loss * weights,',
         "returned (an array of shape [32], an array of shape []) as 'loss'"),
        ("objectives.py", 'return {"loss"', 'return {"lost"',
         "objective Huber returned no 'loss', but lost, error; expected"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_what_does_not_fit_together_is_said(folder, file, old, new, message):
    edited(folder, file, old, new)
    with pytest.raises(ConfigError) as error:
        train(resolved(folder), folder / "run", cache_dir=folder, progress=False)
    assert message in str(error.value)


def test_what_the_model_takes_and_is_not_given_is_said(folder, caplog):
    edited(folder, "models.py", "x, train", "x, y=None, train")
    train(resolved(folder, train={"steps": 1, "batch_size": 8}), folder / "run", cache_dir=folder, progress=False)
    assert "objective Huber does not give Curve what it takes and rows have: y" in caplog.text


def test_a_model_for_texts_must_give_features(folder):
    edited(
        folder, "models.py", "def __call__(self, x, train", "def __call__(self, tokens, segment_ids, positions, train"
    )
    edited(folder, "models.py", "angles = x[:, None]", "angles = tokens[:, :1]")
    config = resolved(folder, objective={"name": "causal_lm"}, data={"tokenizer": "bytes", "sequence_length": 8})
    module = build_module(config, {"num_waves": 2})
    with pytest.raises(
        ConfigError, match=r"CausalLM calls model.features\(tokens, ...\).* and which Curve does not have"
    ):
        build(config["objective"], OBJECTIVES).check(module, None)


def test_a_field_without_a_hash_is_named():
    class Listed(nn.Module):
        sizes: np.ndarray

        def __call__(self, x):
            return x

    with pytest.raises(ConfigError, match="Listed.sizes is a ndarray, which has no hash.*make it a tuple"):
        init_params(Listed(np.ones(2)), jax.random.key(0), {"x": jnp.ones(2)})
