"""What objectives carry, in shipped configs that do: cut, accumulated, split, loaded and planned."""

import dataclasses
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Command, evaluations, losses

import fmjax
from fmjax import config as configs
from fmjax import generate
from fmjax.assemble import build_module, open_data
from fmjax.checkpoint_files import read_item
from fmjax.commands import cli
from fmjax.data.digits import CODEC
from fmjax.errors import ConfigError, InputError
from fmjax.parallel.sharding import to_global
from fmjax.planning.plan import plan
from fmjax.training.loop import train
from fmjax.training.program import make_program
from tests.small_models import random_model

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
SMALL = {
    "vq_digits": {"model.hidden_size": "16", "model.inner_size": "8", "model.code_size": "4",
                  "objective.num_codes": "8",
                  "objective.decay": "0.6"},
    "moco_digits": {"model.hidden_size": "16", "model.projection_size": "8", "objective.queue_size": "32",
                    "objective.momentum": "0.8"},
}  # fmt: skip
RUN = {"train.batch_size": "16", "train.log_every": "1", "train.checkpoint_every": "4"}
QUIET = {"train.eval_every": "-1", "train.sample_every": "-1"}
NAMES = sorted(SMALL)


def config(name, **overrides):
    given = {key.replace("__", "."): v for key, v in overrides.items()}
    changed = SMALL[name] | RUN | QUIET | {"train.steps": "4"} | given
    return configs.resolve(configs.apply_overrides(configs.load_config_file(str(FOLDER / f"{name}.py")), changed))


def trained(name, mesh, parts):
    """(losses, carry and parameters on the host, their arrays) of three steps."""
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    overrides = {f"mesh__{axis}": str(size) for axis, size in mesh.items()}
    settings = config(name, train__accumulate_steps=str(parts), **overrides)
    data = open_data(settings, pathlib.Path("/nowhere"))
    program = make_program(settings, build_module(settings, data.model_fields), data.train[0], devices)
    state, step, found = program.init(), program.compile_train_step(), []
    for number in range(3):
        rows = [data.train[number * 16 + i] for i in range(16)]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        state, metrics = step(state, to_global(batch, list(range(16)), program.batch_spec), program.key)
        found.append(float(metrics["loss"]))
    return found, jax.device_get((state.carry, state.params)), state


MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("name", NAMES)  # what BriVL carries is of MoCo's kind
def test_parts_and_devices_make_no_difference(name):
    expected, (carry, params), _ = trained(name, {"data": 1}, parts=1)
    found, (found_carry, found_params), state = trained(name, MESH, parts=2)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3)
    jax.tree.map(close, found_carry, carry)
    jax.tree.map(close, found_params, params)
    if "encoder" in state.carry:
        # The moving average is split as the parameters are; the queue is whole on purpose.
        for slow, fast in zip(jax.tree.leaves(state.carry["encoder"]), jax.tree.leaves(state.params)):
            assert slow.sharding.is_equivalent_to(fast.sharding, slow.ndim)
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.carry["queue"]))


class Digits(Command):
    """`python -m fmjax.train` with a shipped config."""

    def __init__(self, folder, name):
        self.folder = folder
        shutil.copy(FOLDER / f"{name}.py", folder / "config.py")
        changed = SMALL[name] | RUN | {"train.steps": "12", "train.eval_every": "6"}
        self.flags = [f"--config.{key}={value}" for key, value in changed.items()]


def arrays(workdir, step=12):
    items = [read_item(workdir / "checkpoints" / str(step) / part) for part in ("params", "train", "carry")]
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_flatten_with_path(items)[0]}


def test_cut_it_ends_bitwise_the_same_with_what_it_carries(tmp_path):
    command = Digits(tmp_path, "moco_digits")
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    code, output = command.call(straight, *command.flags)
    assert code == 0, output
    shutil.copytree(straight, cut)
    shutil.rmtree(cut / "checkpoints" / "12")
    code, output = command.call(cut, *command.flags)
    assert code == 0 and "resuming" in output, output
    assert losses(cut) == losses(straight) and evaluations(cut) == evaluations(straight)
    same(arrays(cut), arrays(straight))


def same(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


VAE = {"name": "autoencoder_kl", "widths": (4, 4), "num_blocks": 1, "latent_channels": 2, "norm_groups": 2,
       "mid_attention": False, "image_size": 8, "num_channels": 1}  # fmt: skip
DIT = {"name": "dit", "num_layers": 1, "hidden_size": 8, "num_heads": 2}
CARRYING = {  # model and objective
    "latent_diffusion": (DIT | {"image_size": 4, "num_channels": 2},
                         {"condition": "label", "first_stage": "vae", "latent_shape": (4, 4, 2)}),
    "consistency": (DIT, {"process": "flow", "target": "velocity"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRYING)
def test_cut_it_goes_on_by_the_measured_scale_or_the_average(name, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "fmjax")
    everything = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *a: everything(*a)[:1])
    model, objective = CARRYING[name]
    if "first_stage" in objective:
        random_model(VAE, image=CODEC, objective={"name": "vae"}).save(tmp_path / "vae")
        objective = objective | {"first_stage": str(tmp_path / "vae")}
    settings = configs.resolve({
        "train": {"steps": 3, "batch_size": 8, "log_every": 1, "eval_every": -1, "sample_every": -1,
                  "checkpoint_every": 2, "tensorboard": False},
        "model": model, "objective": {"name": name, **objective}, "data": {"name": "digits"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    run = lambda workdir: train(settings, workdir, cache_dir=tmp_path / "cache", progress=False)
    run(straight)
    shutil.copytree(straight, cut)
    shutil.rmtree(cut / "checkpoints" / "3")
    run(cut)
    assert "cut at step 2 of 3" in caplog.text
    assert len(losses(cut)) == 3 and losses(cut) == losses(straight)
    same(arrays(cut, 3), arrays(straight, 3))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs on eight devices, by name."""
    folder, made = tmp_path_factory.mktemp("carry"), {}
    for name in NAMES:
        changes = {"mesh__data": "2", "mesh__fsdp": "2", "mesh__tensor": "2"}
        if name == "vq_digits":
            changes |= {"train__eval_every": "0", "train__sample_every": "4", "objective__num_samples": "2"}
        found = train(config(name, **changes), folder / name, cache_dir=folder, progress=False)
        made[name] = folder / name, found
    return made


def test_what_runs_carry_loads_on_one_device_on_a_mesh_and_from_what_save_wrote(runs, tmp_path):
    for name in NAMES:
        one, split = fmjax.load(runs[name][0]), fmjax.load(runs[name][0], mesh={"fsdp": 4, "tensor": 2})
        jax.tree.map(np.testing.assert_array_equal, one.carry, jax.device_get(split.carry))
        assert all(x.sharding.device_set == set(jax.devices()) for x in jax.tree.leaves(split.carry))
        split.save(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, one.carry, fmjax.load(tmp_path / name).carry)
        slow = jax.tree.leaves(split.carry.get("encoder", ()))
        assert not slow or not all(x.sharding.is_fully_replicated for x in slow)


def test_samples_are_held_out_images_beside_their_reconstructions(runs, tmp_path, capsys):
    workdir, found = runs["vq_digits"]
    assert {p.name for p in (workdir / "samples" / "4").iterdir()} == {"all.png", "0.png", "1.png", "2.png", "3.png"}
    assert 1 <= found["eval/perplexity"] <= 8 and found["eval/loss"] > found["eval/reconstruction"]
    model = fmjax.load(workdir)
    image = model.codec.read(workdir / "samples" / "4" / "0.png")
    drawn = model.objective.sample(model, jax.random.key(0), rows={"images": model.codec.encode(image)["images"][None]})
    np.testing.assert_array_equal(drawn[0], image)
    assert abs(drawn[1].astype(int) - model.codec.read(workdir / "samples" / "4" / "1.png")).max() <= 1
    # What it makes of images that it is given is the same, whatever else is among them and wherever it lies.
    files = [str(workdir / "samples" / "4" / f"{i}.png") for i in (2, 0)]
    images = [model.codec.read(file) for file in files]
    made = model.generate(images)
    for other in (fmjax.load(workdir, mesh={"data": 2, "fsdp": 4}), model):
        assert abs(np.stack(other.generate(images, batch_size=1)).astype(int) - np.stack(made)).max() <= 1
    assert abs(made[1].astype(int) - drawn[1]).max() <= 1
    argv = [f"--model={workdir}", f"--output={tmp_path / 'made.png'}"]
    assert cli.run(generate.main, [*argv, f"--image={files[1]}"]) == 0
    assert abs(model.codec.read(tmp_path / "made.png").astype(int) - drawn[1]).max() <= 1
    for flags, message in [
        ([], "reconstructs images: give it some"),
        (["--image=none.png"], "none.png' cannot be read: No such file"),
        ([f"--image={workdir / 'config.json'}"], "prompt 0: .*config.json' cannot be read as an image"),
        ([f"--image={files[0]}", "--prompt=3"], "--prompt=3: a prompt of .* is image; leave --prompt out"),
        (["--audio=a.wav"], "--audio=a.wav: .* reads no audio; it reads image"),
    ]:
        capsys.readouterr()
        assert cli.run(generate.main, [*argv, *flags]) == 2
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(InputError, match="prompt 1: an image is in colour, and images here are grey"):
        model.generate([image, np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)])
    with pytest.raises(InputError, match="it lacks what its objective carries"):
        dataclasses.replace(model, carry=None).generate([image])


def test_a_plan_counts_what_is_carried(tmp_path):
    found = plan(config("moco_digits", mesh__data="8"), jax.devices(), "cpu:8", cache_dir=tmp_path)
    assert found.carry_bytes == 4 * (32 * (8 + 16 + 1) + 1) + found.parameter_bytes  # the queue and the slow encoder
    others = found.parameter_bytes + found.optimizer_bytes + found.batch_bytes
    assert others + found.carry_bytes <= found.argument_bytes < others + found.carry_bytes + 100  # counters and the key


@dataclasses.dataclass(frozen=True)
class Growing:
    """Carries a list that gets longer."""

    def inputs(self, batch):
        return {"images": batch["images"]}

    def initial(self, module, params, key):
        return {"seen": jnp.zeros(1)}

    def __call__(self, apply_fn, params, batch, key, train, *, carry):
        from fmjax.objectives.base import Proposal

        made = apply_fn({"params": params}, batch["images"])
        return {"loss": ((made**2).sum(), jnp.float32(len(made)))}, Proposal()

    def after(self, carry, proposal, params):
        return {"seen": jnp.append(carry["seen"], 0.0)}


def test_a_carry_that_changes_shape_and_a_queue_of_broken_batches_are_refused_before_training(tmp_path):
    changed = config("moco_digits").to_dict() | {"objective": {"name": f"{__name__}:Growing"}}
    with pytest.raises(
        ConfigError, match=r"Growing: `after` makes 'seen' of the carry float32 \(2,\), it was float32 \(1,\)"
    ):
        train(configs.resolve(changed), tmp_path / "growing", cache_dir=tmp_path, progress=False)
    broken = config("moco_digits", objective__queue_size="40")
    with pytest.raises(ConfigError, match="objective.queue_size = 40 is not a multiple of train.batch_size = 16"):
        train(broken, tmp_path / "broken", cache_dir=tmp_path, progress=False)
    assert not (tmp_path / "growing" / "config.json").exists()
    short = configs.apply_overrides(configs.load_config_file(str(FOLDER / "vq_digits.py")), {"model.num_halvings": "4"})
    with pytest.raises(ConfigError, match="model.num_halvings = 4: images of 8x8 pixels cannot be halved that often"):
        train(configs.resolve(short), tmp_path / "halved", cache_dir=tmp_path, progress=False)


@dataclasses.dataclass(frozen=True)
class Unkept(Growing):
    """Carries what no checkpoint keeps."""

    kind: str = "list"

    def initial(self, module, params, key):
        return {"list": [jnp.zeros(1)], "array": jnp.zeros(1), "nothing": {}, "key": {"drawn": key}}[self.kind]

    def after(self, carry, proposal, params):
        return carry


def test_a_carry_that_no_checkpoint_keeps_is_refused_before_training(tmp_path):
    kinds = {"list": "makes a list; a carry is a dict", "array": "makes a .*; a carry is a dict",
             "nothing": "a dict of no array",
             "key": "'drawn' of the carry is a random key"}  # fmt: skip
    for kind, message in kinds.items():
        objective = {"name": f"{__name__}:Unkept", "kind": kind}
        changed = configs.resolve(config("moco_digits").to_dict() | {"objective": objective})
        with pytest.raises(ConfigError, match=f"objective Unkept: .*{message}"):
            train(changed, tmp_path / kind, cache_dir=tmp_path, progress=False)
