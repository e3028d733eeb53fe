"""Plans of whole runs: the command, the program that is planned, memory against a real run, TPU slices."""

import collections
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest
import scipy.optimize

from fmjax import config as configs
from fmjax import plan as command
from fmjax.assemble import build_module, open_data
from fmjax.commands import cli
from fmjax.data import DATASETS
from fmjax.errors import ConfigError
from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.planning import counts, plan, report, search, topology
from fmjax.training.hardware import Chip
from fmjax.training.program import make_program

KEYS = """topology num_devices device_kind hbm_bytes_per_device argument_bytes temp_bytes peak_bytes_per_device fits
model_flops_per_step hardware_flops_per_step tokens_per_step mfu_bound limited_by compile_seconds""".split()

CONFIG = """
def get_config():
    return {
        "train": {"steps": 10, "batch_size": 8},
        "model": {"name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
                  "num_kv_heads": 4, "max_length": 128, "vocab_size": 264},
        "objective": {"name": "causal_lm"},
        "data": {"source": "%s", "sequence_length": 128, "tokenizer": "bytes"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    }
"""
has_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text("some words that say nothing " * (5 + number))
    file = tmp_path / "config.py"
    file.write_text(CONFIG % (tmp_path / "text"))
    return file


def resolved(file, **overrides):
    raw = configs.load_config_file(str(file))
    return configs.resolve(configs.apply_overrides(raw, {k.replace("__", "."): v for k, v in overrides.items()}))


def test_the_command_plans_for_simulated_devices(config_file, tmp_path, capsys):
    out = tmp_path / "plan.json"
    flags = [f"--config={config_file}", "--topology=cpu:8", f"--json={out}"]
    overrides = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    assert cli.run(command.main, flags + overrides) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert set(KEYS) <= set(found)
    assert found["num_devices"] == 8 and found["mesh"]["tensor"] == 2 and found["tokens_per_step"] == 8 * 128
    assert found["fits"] and found["mfu_bound"] is None and "rates of 'cpu' are not known" in printed
    # The rest is what the blocks of CPU attention compute although it is masked.
    assert 0.8 < found["useful_flops"] <= 1.0
    assert set(found["link_bytes"]) >= {"tensor"}
    # One of four shards of the parameters, the moments twice that.
    assert found["optimizer_bytes"] == pytest.approx(2 * found["parameter_bytes"], rel=0.01)


def test_what_does_not_fit_says_so_and_exits_with_3(config_file, monkeypatch, capsys):
    monkeypatch.setattr(topology, "memory_bytes", lambda devices: 100_000)
    assert cli.run(command.main, [f"--config={config_file}", "--topology=cpu:1"]) == 3
    assert "does not fit" in capsys.readouterr().out


def test_search_finds_what_fits(config_file, monkeypatch, tmp_path, capsys):
    given = plan.plan(resolved(config_file), jax.devices()[:1], "cpu:1", cache_dir=tmp_path)
    monkeypatch.setattr(topology, "memory_bytes", lambda devices: given.peak_bytes_per_device - 100_000)
    out = tmp_path / "plan.json"
    flags = [f"--config={config_file}", "--topology=cpu:1", "--search=8", f"--json={out}"]
    assert cli.run(command.main, flags) == 0
    found = json.loads(out.read_text())
    assert found["fits"] and found["changes"] == "train.accumulate_steps=2"  # which computes nothing again
    assert found["tried"][0][0] == "as given" and not found["tried"][0][1]["fits"]
    tried = {what: row["fits"] for what, row in found["tried"]}
    policies = [what for what in tried if what.startswith("model.remat=")]
    assert any(tried[what] for what in policies)
    why = "the fewest FLOPs; no bound on a step's time is known"
    printed, said = capsys.readouterr()
    assert f"best: {found['changes']} (of those that fit, or may, {why})" in printed
    assert "does not fit" in said and "--search" not in said


@pytest.fixture
def told_memory(monkeypatch):
    """Plans whose memory is 1 and, for each row of a part, what the policy keeps: 6 with "none" to 1 with "full".

    A part whose rows do not divide over `data` and `fsdp` is refused, as `planned_program` does.
    """

    def planned(config, devices, cache_dir):
        rows = config["train"]["batch_size"] // config["train"]["accumulate_steps"]
        sizes = MeshConfig(**config["mesh"]).filled(len(devices))
        if rows % (sizes["data"] * sizes["fsdp"]):
            raise ConfigError(f"{rows} rows")
        return 1 + rows * (len(search.POLICIES) - search.POLICIES.index(config["model"]["remat"])), None

    monkeypatch.setattr(search, "planned_program", planned)
    return lambda memory: monkeypatch.setattr(
        search, "plan_program", lambda taken, example, name: types.SimpleNamespace(fits=memory and taken <= memory)
    )


@pytest.mark.parametrize(
    "memory, given, policy, parts, both",
    [
        # Of 16 rows: nothing to gain; a policy or fewer rows at a time; only fewer rows; both; nothing does.
        (97, {}, None, None, None),
        (81, {}, 1, 2, None),
        (14, {}, None, 8, None),
        (9, {}, None, None, 2),
        (3, {}, None, None, 8),
        (2, {}, None, None, None),
        (17, {"model__remat": "full"}, None, None, None),
        (48, {"model__remat": "full"}, 4, None, None),
        (16, {"model__remat": "full"}, None, 2, None),
        (97, {"train__accumulate_steps": "4"}, None, 1, None),
        (49, {"train__accumulate_steps": "4"}, None, 2, None),
        (None, {"model__remat": "full"}, 0, None, None),
        (None, {"model__remat": "full", "train__accumulate_steps": "8"}, 0, 1, None),
    ],
)
def test_search_finds_the_fastest_of_each_kind(config_file, told_memory, tmp_path, memory, given, policy, parts, both):
    told_memory(memory)
    config = resolved(config_file, **{"model__remat": "none", "train__batch_size": "16"} | given)
    rows = list(search.search(config, jax.devices()[:1], "cpu:1", cache_dir=tmp_path, tries=99))
    tried = [what for what, _ in rows]
    assert len(set(tried)) == len(tried) <= 7
    fitting = {what for what, found in rows if found.fits is not False}

    def first(prefix, ladder):
        return next((step for step in ladder if f"{prefix}{step}" in fitting), None)

    found = first("model.remat=", search.POLICIES)
    assert (None if found is None else search.POLICIES.index(found)) == policy
    assert first("train.accumulate_steps=", (1, 2, 4, 8, 16, 32)) == parts
    assert first("model.remat=full train.accumulate_steps=", (2, 4, 8)) == both
    faster_in_both = policy is not None and parts is not None and "as given" in fitting
    assert (f"model.remat={found} train.accumulate_steps={parts}" in tried) == faster_in_both


def test_search_begins_with_the_given_mesh_and_looks_at_the_others_before_it_goes_on_there(
    config_file, told_memory, tmp_path
):
    told_memory(1)
    config = resolved(config_file, train__batch_size="64")
    rows = list(search.search(config, jax.devices(), "cpu:8", cache_dir=tmp_path, tries=99))
    meshes = [" ".join(part for part in what.split() if part.startswith("mesh.")) for what, _ in rows]
    others = list(dict.fromkeys(mesh for mesh in meshes if mesh))
    assert meshes[:7] == [""] * 7 and len(others) >= 3
    assert [what for what, _ in rows[7 : 7 + len(others)]] == others
    assert [mesh for mesh in meshes if mesh in others[:1]] == others[:1] * 7


def test_search_takes_fewer_parts_where_a_mesh_has_no_rows_for_them(config_file, told_memory, tmp_path):
    told_memory(97)
    sizes = {"train__batch_size": "16", "train__accumulate_steps": "4", "mesh__data": "2", "mesh__tensor": "4"}
    rows = search.search(resolved(config_file, **sizes), jax.devices(), "cpu:8", cache_dir=tmp_path, tries=99)
    tried = [what for what, _ in rows]
    whole = "mesh.data=1 mesh.fsdp=8 mesh.tensor=1 mesh.sequence=1"
    assert whole not in tried and f"{whole} train.accumulate_steps=2" in tried
    assert f"{whole} train.accumulate_steps=1" in tried  # is faster, and fits


def test_search_says_that_there_was_more_to_try(config_file, told_memory, tmp_path, caplog):
    told_memory(2)
    rows = lambda tries: list(
        search.search(resolved(config_file), jax.devices()[:1], "cpu:1", cache_dir=tmp_path, tries=tries)
    )
    with caplog.at_level("WARNING", logger=search.__name__):
        assert len(rows(99)) == 7 and not caplog.records
        assert len(rows(3)) == 3 and "more to try, such as model.remat=" in caplog.text


def test_a_plan_whose_time_is_known_is_better_than_one_whose_time_is_not():
    def row(name, bound, flops, fits=True, traffic=1.0):
        known = dict(step_seconds_bound=bound, hardware_flops_per_step=flops, memory_traffic_bytes=traffic)
        return name, types.SimpleNamespace(fits=fits, **known)

    rows = [row("unknown", None, 1.0), row("slow", 2.0, 1.0), row("fast", 1.0, 9.0), row("too large", 0.5, 1.0, False)]
    assert search.best(rows)[0] == "fast"
    printed = report.choice(*search.best(rows))
    assert printed == "best: fast (of those that fit, or may, the lowest bound on a step's time)"
    assert search.best([rows[0], row("more", None, 2.0)])[0] == "unknown"
    assert search.best([row("busy", None, 1.0, traffic=2.0), rows[0]])[0] == "unknown"
    assert search.best(rows[3:]) is None


def test_search_over_meshes_leaves_out_what_does_not_divide(config_file, tmp_path):
    rows = list(search.search(resolved(config_file), jax.devices(), "cpu:8", cache_dir=tmp_path, tries=3))
    tried = [what for what, _ in rows]
    assert tried[0] == "as given"
    assert "mesh.data=1 mesh.fsdp=4 mesh.tensor=2 mesh.sequence=1" in tried
    assert not any("tensor=8" in what for what in tried)  # four heads
    assert len(report.table(rows).splitlines()) == 1 + len(rows)


@pytest.mark.parametrize(
    "name, message",
    [
        ("cpu:none", "cpu:N"),
        ("v5p", "v5e:2x2"),
        ("v5p:4by4", "sides"),
        ("gpu:8", "not known"),
        ("cpu:4096", "fresh process"),
    ],
)
def test_unknown_topologies_are_explained(config_file, name, message, capsys):
    assert cli.run(command.main, [f"--config={config_file}", f"--topology={name}"]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_compiler_says_what_to_install(config_file, monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert cli.run(command.main, [f"--config={config_file}", "--topology=v5e:2x2"]) == 2
    assert "pip install 'jax[tpu]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"mesh__fsdp": "2", "mesh__tensor": "2", "mesh__sequence": "2", "mesh__data": "1", "model__remat": "full",
         "train__accumulate_steps": "2"},
    ],
)  # fmt: skip
def test_the_program_planned_is_the_program_run(config_file, tmp_path, overrides):
    """Abstract shapes told by the config against real rows of opened data: the same lowered text."""
    config = resolved(config_file, **overrides)
    devices = jax.devices()[: 8 if overrides else 1]
    data = open_data(config, tmp_path / "cache")
    run = make_program(config, build_module(config, data.model_fields), data.train[0], devices)
    with jax.set_mesh(run.mesh):
        text = run.train_step.lower(run.spec.shapes, run.batch_spec, run.key).as_text()
    planned, _ = plan.planned_program(config, devices, tmp_path / "cache")
    assert planned.lower_train_step().as_text() == text


@pytest.mark.parametrize(
    "section",
    [
        {"name": "text", "source": "builtin", "sequence_length": 96, "tokenizer": "bytes"},
        {"name": "masked_text", "sequence_length": 32, "tokenizer": "train:300"},
        {"name": "masked_text", "sequence_length": 32, "tokenizer": "train:300", "next_sentence": True},
        {"name": "pairs", "sequence_length": 24, "source_length": 16, "tokenizer": "train:300"},
    ],
)
def test_rows_are_what_the_config_says_without_reading_them(section, config_file, tmp_path):
    section = dict(section)
    if section["name"] == "pairs":
        for side in ("source", "target"):
            lines = [" ".join(f"{side}{i * j % 17}" for j in range(1, 6)) for i in range(60)]
            (tmp_path / f"{side}.txt").write_text("\n".join(lines) + "\n")
            section[f"{side}_file"] = str(tmp_path / f"{side}.txt")
    else:
        section["source"] = str(config_file.parent / "text")
    kind = DATASETS.get(section.pop("name"))
    data = kind(**section)
    row = data.open(seed=0, cache_dir=tmp_path / "cache").train[0]
    told = {name: (x.shape, x.dtype) for name, x in data.example.items()}
    assert told == {name: (x.shape, x.dtype) for name, x in row.items()}


def test_memory_against_a_real_run(config_file):
    """What a process grows by when it makes the state and takes steps, beside what was planned for it."""
    script = textwrap.dedent("""
        import pathlib, sys
        import jax, numpy as np
        from fmjax import config as configs
        from fmjax.planning import plan
        overrides = {"model.hidden_size": "512", "model.intermediate_size": "2048", "model.num_layers": "6",
                     "model.num_heads": "4", "model.num_kv_heads": "4", "train.batch_size": "8",
                     "data.sequence_length": "64"}
        config = configs.resolve(configs.apply_overrides(configs.load_config_file(sys.argv[1]), overrides))
        program, example = plan.planned_program(config, jax.devices(), pathlib.Path(sys.argv[2]))
        found = plan.plan_program(program, example, "attached")
        step = program.compile_train_step()

        def resident(field):
            lines = pathlib.Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

        batch = {name: jax.numpy.zeros(x.shape, x.dtype) for name, x in program.batch_spec.items()}
        before = resident("VmRSS")
        state = program.init()
        for _ in range(2):
            state, metrics = step(state, batch, program.key)
        jax.block_until_ready(state)
        print(found.peak_bytes_per_device, resident("VmHWM") - before)
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(config_file), str(config_file.parent)], capture_output=True, text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    planned, taken = map(int, run.stdout.split())
    assert planned > 300e6
    assert taken == pytest.approx(planned, rel=0.15)


def test_the_given_config_must_be_right_when_searching(config_file, capsys):
    flags = [f"--config={config_file}", "--topology=cpu:2", "--search", "--config.train.batch_size=7"]
    assert cli.run(command.main, flags) == 2
    assert "train.batch_size = 7" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_said_before_anything_slow(config_file, capsys):
    flags = [f"--config={config_file}", "--topology=cpu:1", "--json=/nowhere/plan.json"]
    assert cli.run(command.main, flags) == 2
    assert "/nowhere/plan.json" in capsys.readouterr().err


@pytest.fixture
def known_rates(monkeypatch):
    """Simulated devices with rates that are told, so that there is a bound."""
    rates = Chip(peak_flops=1e12, memory_bandwidth=1e11)
    monkeypatch.setattr(plan, "chip", lambda device: rates)
    return rates


def test_attention_by_queries_is_in_the_bound(config_file, tmp_path, known_rates):
    """On a CPU it loops over as many blocks of keys as the places of a device's queries ask for."""
    sizes = dict(mesh__data="1", mesh__sequence="4", model__num_kv_heads="1", model__num_layers="1")
    config = resolved(config_file, **sizes)
    found = plan.plan(config, jax.devices()[:4], "cpu:4", cache_dir=tmp_path)
    assert not found.uncounted
    # All products but attention's as the model's, whose backward pass costs twice the forward pass; attention's two and
    # five for all pairs, since a row of 128 keys is one block.
    pairs = 8 * 2 * 64  # rows, FLOPs of a pair over the four heads
    by_hand = found.model_flops_per_step - 6 * pairs * 128 * 129 / 2 + 7 * pairs * 128**2
    assert found.hardware_flops_per_step == pytest.approx(by_hand, rel=1e-6)
    assert found.seconds["compute"] == pytest.approx(by_hand / 4 / known_rates.peak_flops)
    assert found.mfu_bound and "not counted" not in report.describe(found)


def test_what_cannot_be_counted_leaves_no_bound(config_file, tmp_path, known_rates, monkeypatch):
    lacks = counts.Counts(flops=1.0, uncounted=collections.Counter({"some kernel": 3}))
    monkeypatch.setattr(plan.counts, "count", lambda program, shape: lacks)
    found = plan.plan(resolved(config_file), jax.devices()[:1], "cpu:1", cache_dir=tmp_path)
    assert found.step_seconds_bound is found.mfu_bound is found.useful_flops is None
    printed = report.describe(found)
    assert "not counted          3 x some kernel" in printed and "not all of its work is counted" in printed


@pytest.mark.parametrize(
    "sent, seconds",
    [
        ({"fsdp": 6.0, "tensor": 2.0}, {"fsdp": 3.0, "tensor": 2.0}),
        ({"fsdp+tensor": 9.0}, {"fsdp": 3.0, "tensor": 3.0}),  # as much as each has links for
        ({"fsdp": 2.0, "fsdp+tensor": 4.0}, {"fsdp": 2.0, "tensor": 2.0}),  # 2 of them along each: not 1 s beside 4/3 s
        ({"fsdp": 8.0, "fsdp+tensor": 3.0}, {"fsdp": 4.0, "tensor": 3.0}),  # all of them along tensor
        ({"fsdp": 1.0, "data": 50.0, "data+fsdp": 50.0}, {"fsdp": 0.5}),  # the links of data are not known
        ({"fsdp": 12.0, "fsdp+tensor+sequence": 6.0, "tensor+sequence": 6.0},
         {"fsdp": 6.0, "tensor": 2.4, "sequence": 2.4}),
        ({}, {}),
    ],
)  # fmt: skip
def test_what_goes_along_several_axes_shares_their_links(sent, seconds):
    """Links of fsdp send 2 bytes a second, of tensor 1, of sequence 4."""
    found = topology.link_seconds(sent, {"fsdp": 2.0, "tensor": 1.0, "sequence": 4.0})
    assert found == pytest.approx(seconds)


def test_no_way_to_spread_what_goes_along_several_axes_is_faster():
    """As a linear program: bytes of each kind of traffic on each axis, the least time in which all links are done."""
    rng = np.random.default_rng(0)
    axes = ["a", "b", "c", "d"]
    for _ in range(30):
        kinds = (np.flatnonzero(places) for places in rng.random((6, 4)) < 0.5 if places.any())
        sent = {"+".join(axes[i] for i in kind): float(rng.integers(1, 20)) for kind in kinds}
        speed = {axis: float(rng.integers(1, 5)) for axis in axes}
        at = [(kind, axis) for kind in sent for axis in kind.split("+")]
        in_time = [[float(axis == a) for _, axis in at] + [-speed[a]] for a in axes]
        all_sent = [[float(kind == k) for kind, _ in at] + [0.0] for k in sent]
        goal = [0.0] * len(at) + [1.0]
        least = scipy.optimize.linprog(goal, in_time, [0.0] * len(axes), all_sent, list(sent.values()))
        found = topology.link_seconds(sent, speed)
        assert max(found.values()) == pytest.approx(least.fun)
        # And in the time found for each axis all of it is sent, no link idle before.
        assert sum(found[axis] * speed[axis] for axis in found) == pytest.approx(sum(sent.values()))


def test_the_links_of_an_axis_are_one_resource(config_file, tmp_path, monkeypatch, known_rates):
    """In the plan, its bound and its report; what was sent stays told by axes."""
    sent = collections.Counter({"fsdp": 8e9, "fsdp+tensor": 3e9, "data": 1.0})
    monkeypatch.setattr(plan.counts, "count", lambda program, shape: counts.Counts(flops=1.0, link_bytes=sent))
    monkeypatch.setattr(topology, "axis_bandwidths", lambda mesh: {"fsdp": 2e9, "tensor": 1e9})
    found = plan.plan(resolved(config_file), jax.devices()[:1], "cpu:1", cache_dir=tmp_path)
    assert found.seconds == pytest.approx({"compute": 1e-12, "memory": 0.0, "links fsdp": 4.0, "links tensor": 3.0})
    assert found.step_seconds_bound == 4.0 and found.limited_by == "links fsdp" and found.link_bytes == dict(sent)
    lines = [line.split(None, 2) for line in report.describe(found).splitlines() if "  links, " in line]
    assert [line[1] for line in lines] == ["data", "fsdp", "fsdp+tensor", "tensor"]
    ends = ("not in the bound)", "4 s with its share of what goes along several", "shared by the links of these axes")
    assert all(line[2].endswith(end) for line, end in zip(lines, ends))
    assert lines[3][2].startswith("0 B   3 s")


@has_compiler
@pytest.mark.parametrize(
    "name, sizes, bandwidths",
    [
        ("v5p:4x4x4", {"fsdp": 64}, {"fsdp": 6 * 90}),  # three closed rings, two directions each
        ("v5p:4x4x4", {"fsdp": 16, "tensor": 4}, {"fsdp": 4 * 90, "tensor": 2 * 90}),
        ("v5p:2x2x4", {"fsdp": 16}, {"fsdp": 3 * 90}),  # not a torus: two sides are no multiples of four
        ("v5e:4x4", {"data": 4, "tensor": 4}, {"data": 45, "tensor": 45}),
        ("v6e:16x16", {"fsdp": 256}, {"fsdp": 4 * 90}),
    ],
)
def test_links_of_each_axis(name, sizes, bandwidths):
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes), topology.devices_of(name))
    assert topology.axis_bandwidths(mesh) == {axis: value * 1e9 for axis, value in bandwidths.items()}


@has_compiler
def test_several_slices_hold_replicas():
    from jax.experimental import topologies

    topology.devices_of("v5e:2x2")  # sets what the compiler must know
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1", num_slices=2).devices
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), list(devices))
    assert [{device.slice_index for device in row.flat} for row in mesh.devices] == [{0}, {1}]
    assert set(topology.axis_bandwidths(mesh)) == {"fsdp"}
    seconds = topology.link_seconds({"data": 1.0, "data+fsdp": 1.0}, topology.axis_bandwidths(mesh))
    assert seconds == {}
    with pytest.raises(ConfigError, match="2 slices"):
        make_mesh(MeshConfig(data=1, extra={"expert": 8}), list(devices))


@has_compiler
def test_a_program_too_large_for_a_tpu(tmp_path, monkeypatch):
    """The compiler refuses it, and the plan says by how much all the same: as the compiler does in its refusal."""
    refusals, says = [], plan._says_hbm_is_too_small
    monkeypatch.setattr(plan, "_says_hbm_is_too_small", lambda message: refusals.append(message) or says(message))
    file = pathlib.Path(__file__).parents[2] / "configs" / "gpt2_124m.py"
    config = resolved(
        file, model__num_layers="2", model__hidden_size="256", model__num_heads="4", model__vocab_size="1024",
        train__accumulate_steps="1", train__batch_size="8192", model__attention="reference", mesh__data="-1",
    )  # fmt: skip
    found = plan.plan(config, topology.devices_of("v5e:2x2"), "v5e:2x2", cache_dir=tmp_path)
    assert found.fits is False
    assert found.peak_bytes_per_device > found.hbm_bytes_per_device > 15 * 2**30
    asked = float(re.search(r"(\d+\.\d+)G", refusals[0])[1])
    assert found.peak_bytes_per_device / 2**30 == pytest.approx(asked, abs=0.01) and found.argument_bytes > 0.05 * 2**30
    assert found.hardware_flops_per_step > found.model_flops_per_step > 0
    assert "does not fit" in report.verdict(found)


@pytest.mark.parametrize(
    "message, expected",
    [
        ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: it used 168.30G of 15.75G", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 168.30G of 15.75G hbm.", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem. copy from hbm", False),
        ("INTERNAL: Mosaic failed to compile TPU kernel: hbm", False),
    ],
)  # fmt: skip
def test_which_refusals_mean_that_the_memory_is_too_small(message, expected):
    """Only main memory's; a kernel that needs too much of another memory is a fault to be raised."""
    assert plan._says_hbm_is_too_small(message) is expected


@has_compiler
def test_small_plans_for_tpus(tmp_path, monkeypatch):
    """The real compiler, splash attention among what it compiles, every kernel's FLOPs known."""
    buffers, statistics = [], []
    reported, measure = plan._reported_bytes, jax.stages.Compiled.memory_analysis

    def analyse(compiled):
        statistics.append(measure(compiled))
        return statistics[-1]

    def read_buffers(folder, error):
        text = plan._dumped(folder, "after_optimizations-buffer-assignment.txt", error)
        buffers.extend(re.findall(r"^allocation \d+: size (\d+)(?!.*\bcolor )", text, re.MULTILINE))
        return reported(folder, error)

    monkeypatch.setattr(plan, "_reported_bytes", read_buffers)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", analyse)
    file = pathlib.Path(__file__).parents[2] / "configs" / "gpt2_124m.py"
    small = dict(
        model__hidden_size="256", model__num_heads="4",
        model__num_layers="2", model__vocab_size="1024", data__sequence_length="256", train__batch_size="8",
        train__accumulate_steps="1",
    )  # fmt: skip
    config = resolved(file, **small)
    found = plan.plan(config, topology.devices_of("v5e:2x2"), "v5e:2x2", cache_dir=tmp_path)
    assert found.device_kind == "TPU v5 lite" and found.num_devices == 4
    assert not found.uncounted
    assert 0.5 < found.useful_flops <= 1.0
    assert 0.0 < found.mfu_bound <= found.useful_flops
    assert found.limited_by in found.seconds
    # Every product by hand: weights, and attention's two forward and five backward, one tile.
    tokens, weights = 8 * 256, 2 * 12 * 256**2 + 256 * 1024
    by_hand = 6 * tokens * weights + 2 * 8 * 4 * (2 + 5) * 2 * 256**2 * 64
    assert found.hardware_flops_per_step == pytest.approx(by_hand, rel=0.02)
    parts = found.parameter_bytes + found.optimizer_bytes + found.batch_bytes
    assert found.argument_bytes == pytest.approx(parts, rel=0.1)
    # All buffers of main memory; the compiler's statistics count some in faster memory as temporaries too.
    [of] = statistics
    code = of.generated_code_size_in_bytes
    assert found.peak_bytes_per_device == pytest.approx(sum(map(int, buffers)) + code, rel=0.005)
    assert found.peak_bytes_per_device <= of.argument_size_in_bytes + of.temp_size_in_bytes + code
    assert found.fits and "to spare" in report.verdict(found)
