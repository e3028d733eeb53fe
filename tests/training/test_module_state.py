"""A module's state in the carry: how parts and devices make it; it is resumed, loaded, begun with and taught by."""

import dataclasses
import functools
import pathlib
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.assemble import build_module, open_data
from fmjax.checkpoint_files import read_item
from fmjax.errors import ConfigError
from fmjax.models.images import ImageModule
from fmjax.models.state import STATE_KEY, initial_state, state_collections
from fmjax.objectives.base import OtherModel, Proposal
from fmjax.objectives.stateful import with_state
from fmjax.parallel.sharding import to_global
from fmjax.training.loop import train
from fmjax.training.program import make_program
from fmjax.training.resume import parts_are_alike
from tests.quick_keys import quick_key

FILE = pathlib.Path(__file__).parents[2] / "configs" / "resnet_digits.py"
SMALL = {
    "model.depths": "(1,1)", "model.widths": "(8,16)", "model.stem_size": "8", "train.batch_size": "16",
    "train.steps": "4", "train.log_every": "1", "train.eval_every": "4", "train.checkpoint_every": "4",
}  # fmt: skip


def config(**overrides):
    changed = SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
    raw = configs.load_config_file(str(FILE)) | {"optimizer": {"name": "adamw", "learning_rate": 3e-3}}
    return configs.resolve(configs.apply_overrides(raw, changed))


class Tiny(ImageModule):
    """Centres a product by its running mean, and in training by the rows' own; keeps what any module may keep."""

    STATE: ClassVar[tuple[str, ...]] = ("seen",)

    num_classes: int | None = None

    @nn.compact
    def __call__(self, images, train: bool = False):
        y = nn.Dense(self.num_classes)(images.reshape(len(images), -1))
        mean = self.variable("seen", "mean", jnp.zeros, y.shape[1:])
        calls = self.variable("seen", "calls", jnp.zeros, (), jnp.int32)
        if train and self.is_mutable_collection("seen"):
            mean.value, calls.value = 0.5 * mean.value + 0.5 * y.mean(0), calls.value + 1
        return y - (y.mean(0) if train else mean.value)


@functools.cache
def stepped(parts=1, devices=1, steps=2):
    """(losses, carry on the host) of a few steps of a ResNet."""
    settings = config(train__accumulate_steps=str(parts))
    data = open_data(settings, pathlib.Path("/nowhere"))
    module = build_module(settings, data.model_fields)
    program = make_program(settings, module, data.train[0], jax.devices()[:devices])
    state, found = program.init(), []
    for number in range(steps):
        rows = [data.train[number * 16 + i] for i in range(16)]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        state, metrics = program.train_step(state, to_global(batch, list(range(16)), program.batch_spec), program.key)
        found.append(float(metrics["loss"]))
    return found, jax.device_get(state.carry)


def test_rows_on_several_devices_are_one_batch():
    (losses, carry), (split_losses, split) = stepped(), stepped(devices=8)
    np.testing.assert_allclose(split_losses, losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), split, carry)
    assert list(carry) == [STATE_KEY] and float(carry[STATE_KEY]["batch_stats"]["start"]["norm"]["var"].mean()) < 1


def test_parts_of_a_batch_are_averaged():
    """The mean of the first normalisation depends on no other: parts of one size make the whole batch's."""
    first = lambda carry: carry[STATE_KEY]["batch_stats"]["start"]["norm"]["mean"]
    np.testing.assert_allclose(first(stepped(parts=4, steps=1)[1]), first(stepped(steps=1)[1]), rtol=1e-4, atol=1e-6)
    assert stepped(parts=4, steps=1)[0] != stepped(steps=1)[0]  # which see less of each other
    assert not parts_are_alike(config())


@pytest.mark.parametrize("section, alike", [({}, True), ({"dropout": 0.1}, False), ({"text": {"dropout": 0.1}}, False)])
def test_dropout_anywhere_in_a_model_makes_parts_differ(section, alike):
    text = {"name": "text_tower", "num_layers": 1, "hidden_size": 8, "num_heads": 1, "max_length": 8, "dropout": 0.0}
    vision = {"name": "vit", "num_layers": 1, "hidden_size": 8, "num_heads": 1, "num_classes": 0, "dropout": 0.0}
    model = {"name": "vit", "num_layers": 1, "hidden_size": 8, "num_heads": 1, **section}
    if "text" in section:
        model = {"name": "clip", "vision": vision, "text": text | section["text"]}
    # An objective whose rows do not meet.
    assert parts_are_alike({"objective": {"name": "classification"}, "model": model}) == alike


def test_any_module_with_state_trains_with_any_objective():
    """Two parts of two calls each: a mean of four, and a count that each call took one further."""
    module = Tiny(2, 1, 3)
    params = module.init(quick_key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    images = jax.random.normal(jax.random.key(1), (4, 2, 2, 1))

    @dataclasses.dataclass(frozen=True)
    class Twice:
        """Calls the module on its rows and on their negatives, and carries a count of rows."""

        def initial(self, module, params, key):
            return {"rows": jnp.zeros(())}

        def __call__(self, apply_fn, params, batch, key, train, *, carry):
            views = [apply_fn({"params": params}, sign * batch["images"], train=train) for sign in (1.0, -2.0)]
            count = jnp.float32(len(batch["images"]))
            return {"loss": (sum((v**2).sum() for v in views), count)}, Proposal({"rows": count})

        def after(self, carry, proposal, params):
            return {"rows": carry["rows"] + proposal.sums["rows"]}

    objective = with_state(Twice(), module)
    carry = objective.initial(module, params, jax.random.key(0))
    call = lambda rows, train: objective(module.apply, params, {"images": rows}, None, train, carry=carry)
    parts = [call(rows, True)[1] for rows in (images[:2], images[2:])]
    sums = jax.tree.map(jnp.add, *(part.sums for part in parts))
    after = objective.after(carry, Proposal(sums), params)
    mean = module.apply({"params": params, **carry[STATE_KEY]}, images).mean(0)
    bias = params["Dense_0"]["bias"]
    np.testing.assert_allclose(after[STATE_KEY]["seen"]["mean"], 0.25 * ((mean - bias) * -1 + 2 * bias), atol=1e-6)
    assert after["rows"] == 4 and after[STATE_KEY]["seen"]["calls"] == 1
    assert after[STATE_KEY]["seen"]["calls"].dtype == jnp.int32
    np.testing.assert_allclose(call(images, False)[0]["loss"][0], (5 * module.apply(
        {"params": params, **carry[STATE_KEY]}, images) ** 2).sum(), rtol=1e-5)  # fmt: skip
    taught = OtherModel(module, params, after[STATE_KEY]).apply(images)
    assert not np.allclose(taught, module.apply({"params": params, **carry[STATE_KEY]}, images))


def test_what_cannot_keep_a_state_is_told():
    module = Tiny(2, 1, 3)
    variables = module.init(quick_key(0), jnp.zeros((1, 2, 2, 1)))
    carry = {STATE_KEY: initial_state(module, jax.random.key(0))}

    def call(loss):
        apply = lambda apply_fn, params, batch, key, train: {"loss": (loss(apply_fn, params, batch), jnp.float32(1))}
        objective = with_state(type("Own", (), {"__call__": lambda self, *args: apply(*args)})(), module)
        objective(module.apply, variables["params"], jnp.zeros((3, 1, 2, 2, 1)), None, True, carry=carry)

    with pytest.raises(ConfigError, match="Own does not call the module with train=True, so its seen would"):
        call(lambda apply_fn, params, batch: apply_fn({"params": params}, batch[:, 0]).sum())
    with pytest.raises(ConfigError, match="Own calls the module inside a jax.vmap, lax.scan or the like"):
        each = lambda apply_fn, params: lambda x: apply_fn({"params": params}, x, train=True)
        call(lambda apply_fn, params, batch: jax.vmap(each(apply_fn, params))(batch).sum())
    with pytest.raises(ConfigError, match="its carry is a ndarray; beside the state of Tiny .seen. it has to be"):
        carried = type("Own", (), {"initial": lambda self, *args: np.zeros(1)})()
        with_state(carried, module).initial(module, variables["params"], jax.random.key(0))
    assert state_collections(nn.Dense(1)) == () and with_state(carried, nn.Dense(1)) is carried
    settings = config().to_dict() | {"model": {"name": f"{__name__}:Unnamed", "num_classes": None}}
    with pytest.raises(ConfigError, match=r"Unnamed.init made the collections \['params', 'seen'\]; .* STATE"):
        train(configs.resolve(settings), pathlib.Path("/nowhere"), cache_dir=pathlib.Path("/nowhere"), progress=False)


class Unnamed(Tiny):
    """Does not say what it keeps."""

    STATE: ClassVar[tuple[str, ...]] = ()


def test_a_run_resumes_bitwise_and_is_loaded_and_begun_with_by_its_statistics(tmp_path):
    straight = train(config(train__steps="8"), tmp_path / "straight", cache_dir=tmp_path, progress=False)
    train(config(), tmp_path / "cut", cache_dir=tmp_path, progress=False)
    again = train(config(train__steps="8"), tmp_path / "cut", cache_dir=tmp_path, progress=False)
    assert again["eval/loss"] == straight["eval/loss"]
    parts = ("params", "train", "carry")
    items = lambda run: [read_item(tmp_path / run / "checkpoints" / "8" / part) for part in parts]
    jax.tree.map(np.testing.assert_array_equal, items("cut"), items("straight"))

    model = fmjax.load(tmp_path / "straight", mesh={"data": 8})
    data = open_data(config(), tmp_path)
    rows = [data.evaluation["test"][i] for i in range(len(data.evaluation["test"]))]
    found = model.classify([model.codecs["image"].decode({"images": row["images"]}) for row in rows], top_k=1)
    correct = np.mean([int(best[0][0]) == row["labels"] for best, row in zip(found, rows)])
    assert correct == pytest.approx(straight["eval/accuracy"], abs=0.01)

    settings = config(train__init_from=str(tmp_path / "straight"), train__steps="1", optimizer__learning_rate="1e-9")
    begun = train(settings, tmp_path / "begun", cache_dir=tmp_path, progress=False)
    assert begun["eval/loss"] == pytest.approx(straight["eval/loss"], rel=0.1)
