"""Distillation against numpy, and as a run: the teacher is read, compared at resume, counted, and never saved."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import byte_model

from fmjax import config as configs
from fmjax.assemble import build_module
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import CheckpointError, ConfigError
from fmjax.objectives.base import OtherModel
from fmjax.objectives.distillation import Distillation
from fmjax.objectives.divergences import Divergence
from fmjax.parallel.sharding import to_global
from fmjax.planning.plan import plan_program
from fmjax.training.loop import train
from fmjax.training.program import make_program


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Fixed:
    """A module whose logits are its parameters."""

    vocab_size = 7

    @staticmethod
    def apply(variables, method, **inputs):
        return variables["params"], {"kernel": jnp.eye(7)}


def test_the_loss_and_its_gradient_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 3, 7))
    targets, weights = rng.integers(0, 7, (2, 3)), np.array([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]])
    t, w = 3.0, 0.3
    objective = Distillation(teacher="somewhere", weight=w, temperature=t)
    arrays = {"tokens": targets, "targets": targets, "loss_weights": weights.astype(np.float32)}
    models = {"teacher": OtherModel(Fixed, jnp.asarray(teacher, jnp.float32))}

    def apply_fn(variables, train, rngs, **inputs):
        return Fixed.apply(variables, **inputs)

    def loss(params):
        sums = objective(apply_fn, params, arrays, None, True, models=models)
        return sums["loss"][0], sums

    gradient, sums = jax.grad(loss, has_aux=True)(jnp.asarray(student, jnp.float32))
    q, p_t, q_t = softmax(student), softmax(teacher / t), softmax(student / t)
    entropy = -np.log(np.take_along_axis(q, targets[..., None], -1))[..., 0]
    kl = (p_t * np.log(p_t / q_t)).sum(-1)
    np.testing.assert_allclose(sums["loss"][0], (((1 - w) * entropy + w * t**2 * kl) * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["divergence"], ((kl * weights).sum(), weights.sum()), rtol=1e-4)
    np.testing.assert_allclose(sums["task_loss"], ((entropy * weights).sum(), weights.sum()), rtol=1e-5)
    expected = (1 - w) * (q - np.eye(7)[targets]) + w * t * (q_t - p_t)
    np.testing.assert_allclose(gradient, expected * weights[..., None], atol=1e-5)


def test_with_t_squared_the_gradient_tends_to_that_of_squared_logits():
    """Equation 4 of the paper: for a high T, T^2 times the gradient is (student - teacher) / V, means removed."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 7))
    apart = Divergence(temperature=100.0)
    gradient = 1e4 * jax.grad(lambda x: apart.of(jnp.asarray(teacher), x))(jnp.asarray(student, jnp.float32))
    difference = (student - student.mean()) - (teacher - teacher.mean())
    np.testing.assert_allclose(gradient, difference / 7, atol=5e-3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"teacher": "x", "weight": 1.5}, "objective.weight = 1.5 must lie between 0 and 1"),
        ({"teacher": "x", "temperature": 0.0}, "objective.temperature = 0.0 must be positive"),
        ({"teacher": "x", "beta": 1.0, "form": "paper"}, "a divergence of 0 everywhere"),
        ({"matches": {"hidden": {}}}, "objective.matches compares with activations of the teacher"),
        ({"teacher": "x", "matches": {"maps": {"of": "attention_scores", "loss": "cosine"}}}, "maps.loss = 'cosine'"),
        ({"teacher": "x", "matches": {"hidden": {"weight": 0.0}}}, "matches.hidden.weight = 0.0 must be above 0"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Distillation(**fields)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    byte_model(ByteTokenizer()).save(folder)
    return folder


def config_for(teacher, mesh=None, vocab_size=ByteTokenizer().vocab_size, data=None, **options):
    size = {"num_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 4, "max_length": 32}
    return configs.resolve({
        "train": {"steps": 3, "batch_size": 8} | options,
        "mesh": mesh or {"data": -1},
        "model": {"name": "llama", "vocab_size": vocab_size} | size,
        "objective": {"name": "distillation", "teacher": str(teacher), "sample_prompts": ()},
        "data": {"sequence_length": 32, "tokenizer": "bytes"} | (data or {}),
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip


def batch(step):
    tokens = np.random.default_rng(step).integers(0, 256, (8, 33)).astype(np.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": np.ones((8, 32), np.float32)}


def program_for(config, devices, **options):
    return make_program(config, build_module(config, {}), {k: v[0] for k, v in batch(0).items()}, devices, **options)


def three_steps(teacher, mesh, devices, **options):
    program = program_for(config_for(teacher, mesh, **options), devices)
    state, step = program.init(), program.compile_train_step()
    for number in range(3):
        rows = to_global(batch(number), list(range(8)), program.batch_spec)
        state, metrics = step(state, rows, program.key, *program.others)
    return float(metrics["loss"]), jax.device_get(state.params)


def test_eight_devices_and_parts_of_a_batch_learn_as_one_device(teacher):
    loss, params = three_steps(teacher, {"data": 1}, jax.devices()[:1])
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    found, found_params = three_steps(teacher, mesh, jax.devices(), accumulate_steps=2)
    assert found == pytest.approx(loss, rel=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found_params, params)


def test_a_teacher_with_another_vocabulary_is_refused(teacher):
    with pytest.raises(ConfigError, match="has a vocabulary of .* tokens, the model one of 300"):
        program_for(config_for(teacher, vocab_size=300), jax.devices()[:1], abstract=True)


def test_a_plan_counts_the_teacher(teacher):
    program = program_for(config_for(teacher, {"data": 1}), jax.devices()[:1], abstract=True)
    plan = plan_program(program, {k: v[0] for k, v in batch(0).items()}, "cpu")
    size = sum(x.size * 4 for x in jax.tree.leaves(byte_model(ByteTokenizer()).params))
    own = plan.parameter_bytes + plan.optimizer_bytes + plan.batch_bytes
    assert 0.9 * size < plan.argument_bytes - own < size + 256 and plan.models_bytes == size


def test_the_teacher_is_not_saved_and_a_changed_one_is_refused(teacher, tmp_path):
    (tmp_path / "text.txt").write_text("A rose is a rose is a rose.\n" * 200)
    shutil.copytree(teacher, tmp_path / "teacher")
    data = {"source": str(tmp_path / "text.txt")}

    def run(steps):
        config = config_for(tmp_path / "teacher", data=data, steps=steps, vocab_size=None)
        train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)

    run(2)
    saved = {path.name for path in (tmp_path / "run" / "checkpoints" / "2").iterdir()}
    assert {"params", "train", "meta"} <= saved and not {"models", "teacher"} & saved
    shutil.rmtree(tmp_path / "teacher")
    other = byte_model(ByteTokenizer())
    other.params["token_embedding"]["embedding"] += 1e-3
    other.save(tmp_path / "teacher")
    with pytest.raises(CheckpointError, match="the model 'teacher' is not the one that the run"):
        run(3)
