"""Every shipped config resolves; the large ones are traced: shapes, shardings and parameter counts, without arrays."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from small_models import byte_model

import fmjax
from fmjax import config as configs
from fmjax.assemble import build_module
from fmjax.commands import keep
from fmjax.planning.plan import shapes
from fmjax.training.loop import train
from fmjax.training.program import make_program
from tests.interop.folders import stand_for_hub_ids

FOLDER = pathlib.Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py")))
def test_every_shipped_config_resolves_and_documents_itself(name, tmp_path, monkeypatch):
    stand_for_hub_ids(monkeypatch, tmp_path / "hub")
    file = FOLDER / f"{name}.py"
    configs.resolve(configs.load_config_file(str(file)))
    configs.resolve(configs.apply_overrides(configs.load_config_file(str(file)), {"train.steps": "6"}))
    text = file.read_text()
    assert f"--config=configs/{name}.py" in text
    for size in set(re.findall(rf"--config=configs/{name}\.py:([\w./-]+)", text)):
        raw = configs.load_config_file(f"{file}:{size}")
        configs.resolve(raw)
        configs.resolve(configs.apply_overrides(raw, {"train.steps": "6"}))


def test_finetuning_goes_from_a_published_folder_to_one(tmp_path):
    byte_model(max_length=256).save(tmp_path / "model", format="hf")
    (tmp_path / "text.txt").write_text("A rose is a rose is a rose.\n" * 400)
    file = f"{FOLDER / 'finetune.py'}:{tmp_path / 'model'}"
    overrides = {"train.steps": "6", "data.source": str(tmp_path / "text.txt"), "mesh.data": "-1", "mesh.fsdp": "1"}
    overrides |= {"train.batch_size": "8", "optimizer.learning_rate": "1e-2"}
    config = configs.resolve(configs.apply_overrides(configs.load_config_file(file), overrides))
    train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    before, after = fmjax.load(tmp_path / "model"), fmjax.load(tmp_path / "run")
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.context_length == before.context_length == 256 > config.data.sequence_length
    text = "A rose is a rose."
    assert after.loglikelihood_rolling([text])[0] > before.loglikelihood_rolling([text])[0]
    after.save(tmp_path / "tuned", format="hf")
    assert fmjax.load(tmp_path / "tuned").context_length == 256


@pytest.mark.parametrize(
    "name, millions",
    [
        ("gpt1", 117), ("gpt3:small", 125), ("gpt3:medium", 350), ("gpt3:large", 760), ("gpt3:xl", 1_300),
        ("gpt3:2.7b", 2_700), ("gpt3:6.7b", 6_700), ("gpt3:13b", 13_000), ("gpt3:175b", 175_000),
        ("llama3", 1_236), ("llama3:8b", 8_030), ("mistral", 7_242), ("qwen3", 596), ("gemma3", 268),
    ],
)  # fmt: skip
def test_published_sizes(name, millions):
    """As the papers and model cards count them, two digits where they give two."""
    config = configs.resolve(
        configs.load_config_file(str(FOLDER / name.replace(":", ".py:")) + ".py" * (":" not in name))
    )
    module = build_module(config, {"vocab_size": 40_478})  # GPT's own; the others name theirs
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert found == pytest.approx(millions, rel=0.04 if name.startswith("gpt3") else 0.005)


def test_vit_b16_has_its_published_size_and_traces():
    config = configs.resolve(configs.load_config_file(str(FOLDER / "vit_b16.py")))
    row = {"images": jax.ShapeDtypeStruct((224, 224, 3), jnp.float32), "labels": jax.ShapeDtypeStruct((), jnp.int32)}
    row |= {"loss_weights": jax.ShapeDtypeStruct((), jnp.float32)}
    module = build_module(config, {"image_size": 224, "num_channels": 3})
    program = make_program(config, module, row)
    assert sum(leaf.size for leaf in jax.tree.leaves(program.spec.shapes.params)) == 86_567_656
    assert module.flops_per_example({}) == pytest.approx(3 * 2 * 17.56e9, rel=0.01)  # 17.6 GMACs forward


@pytest.mark.parametrize("name, parameters", [("dit_xl2_256", 675e6), ("mmdit_2b", 2_028_328_000)])
def test_large_denoisers_have_their_published_size_and_trace(name, parameters):
    config = configs.resolve(configs.load_config_file(str(FOLDER / f"{name}.py")) | {"mesh": {"data": 1, "fsdp": 8}})
    module, row = shapes(config, pathlib.Path())
    program = make_program(config, module, row)
    found = sum(leaf.size for leaf in jax.tree.leaves(program.spec.shapes.params))
    assert found == pytest.approx(parameters, rel=1e-3)
    with jax.set_mesh(program.mesh):
        _, metrics = jax.eval_shape(program.train_step, program.spec.shapes, program.batch_spec, program.key)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", ["dit_xl2_256", "mmdit_2b"])
def test_kept_latents_are_declared_as_the_command_writes_them(name):
    """`keep`, with the flag that the page names, and else by its default."""
    file = FOLDER / f"{name}.py"
    (dtype,) = re.findall(r"fmjax\.commands\.keep\s+(?:--dtype=(\w+))?", file.read_text())
    wanted = keep.parse(["--config=x", "--output=x", *([f"--dtype={dtype}"] if dtype else [])])[0].dtype
    arrays = configs.resolve(configs.load_config_file(str(file))).data.arrays
    assert [text.split("[")[0] for text in arrays][0] == f"latents:{wanted}"


def test_a_first_stage_whose_name_begins_like_a_mode_is_one():
    made = lambda argument: configs.resolve(configs.load_config_file(f"{FOLDER / 't2i_shapes.py'}:{argument}"))
    for argument, denoiser, stage in (
        ("joint", "mmdit", None), ("joint+runs/vae", "mmdit", "runs/vae"), ("joint_vae", "unet", "joint_vae"),
        ("runs/vae+1", "unet", "runs/vae+1"),
    ):  # fmt: skip
        found = made(argument)
        assert (found.model.denoiser.name, found.objective.first_stage) == (denoiser, stage)


@pytest.mark.parametrize(
    "name, parameters, mesh",
    [
        # 124,439,808 published, and 47 rows of padding in the vocabulary
        ("gpt2_124m", 124_439_808 + 47 * 768, {"data": 8}),
        ("llama2_7b", 6_738_415_616, {"data": 1, "fsdp": 4, "tensor": 2}),
    ],
)
def test_large_models_have_their_published_size_and_trace_with_their_shardings(name, parameters, mesh):
    raw = configs.load_config_file(str(FOLDER / f"{name}.py"))
    config = configs.resolve(raw | {"mesh": mesh})
    length = config.data.sequence_length
    ints, floats = jax.ShapeDtypeStruct((length,), jnp.int32), jax.ShapeDtypeStruct((length,), jnp.float32)
    example = {"tokens": ints, "targets": ints, "segment_ids": ints, "positions": ints, "loss_weights": floats}
    program = make_program(config, build_module(config, {}), example)
    leaves = jax.tree.leaves(program.spec.shapes.params)
    assert sum(leaf.size for leaf in leaves) == parameters
    if name == "llama2_7b":
        shard = sum(jnp.prod(jnp.array(s.sharding.shard_shape(s.shape))) * 4 for s in leaves)
        assert shard < 4 * parameters / 8 * 1.001
    with jax.set_mesh(program.mesh):
        out, metrics = jax.eval_shape(program.train_step, program.spec.shapes, program.batch_spec, program.key)
    assert jax.tree.map(lambda x: x.shape, out) == jax.tree.map(lambda x: x.shape, program.spec.shapes)
    assert metrics["loss"].shape == ()


def test_instructgpt_traces_beside_models_that_configs_stand_for(monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    config = configs.resolve(configs.load_config_file("configs/instructgpt_1_3b.py") | {"mesh": {"fsdp": 8}})
    module, row = shapes(config, pathlib.Path())
    program = make_program(config, module, row, abstract=True)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e9
    params = program.spec.shapes.params
    sizes = [count(params[name]) for name in ("policy", "value")]
    assert sizes == pytest.approx([1.3, 6.7], rel=0.04)
    assert {name: round(count(one.params)) for name, one in program.models.items()} == {
        "reference": 1, "rewards.taste.models[0]": 7
    }  # fmt: skip
    lowered = program.lower_train_step()
    assert lowered.out_info[1]["ptx_loss"].shape == ()
    # Its models score rollouts, and lie in memory while the step runs, which does not read them.
    given = jax.tree.leaves((program.spec.shapes, program.batch_spec, program.key, program.models))
    assert lowered.as_text().partition("@main(")[2].partition("->")[0].count("%arg") == len(given)


PLANS = json.loads((FOLDER.parent / "experiments/plans/results.json").read_text())["plans"]


@pytest.mark.parametrize("name", PLANS)
def test_plans_of_large_configs_are_those_recorded(name):
    """Each fits, wastes little, and says in its docstring what experiments/plans found for the config as it is."""
    plan, config = PLANS[name], configs.resolve(configs.load_config_file(str(FOLDER / f"{name}.py")))
    assert plan["fits"] and plan["useful_flops"] >= 0.85
    assert plan["tokens_per_step"] == config.train.batch_size * config.data.sequence_length
    text = (FOLDER / f"{name}.py").read_text()
    gib = [round(plan[key] / 2**30) for key in ("peak_bytes_per_device", "hbm_bytes_per_device")]
    assert f"{gib[0]} of {gib[1]} GiB a chip, {plan['useful_flops']:.1%}" in text
    assert f"Planned for {plan['topology']}" in text and f"{plan['step_seconds_bound']:.2f} s" in text


@pytest.mark.parametrize(
    "name", ["t2i_shapes.py", "maskgit_shapes.py", "dalle1_shapes.py", "dalle2_shapes.py:decoder",
             "dalle2_shapes.py:upsampler"],
)  # fmt: skip
def test_a_task_knows_the_captions_that_what_draws_shapes_is_asked_for(name):
    """`made_captions` refuses a run whose rows tell no caption."""
    config = configs.resolve(configs.load_config_file(f"{FOLDER}/{name}"))
    assert config.data.name == "shapes" and config.data.rows == "caption"
