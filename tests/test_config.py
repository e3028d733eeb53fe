"""A config is complete, checked and frozen before anything slow begins; what is wrong is named."""

import json
import subprocess
import sys
import textwrap

import pytest

from fmjax import config as configs
from fmjax import train
from fmjax.commands import cli
from fmjax.config_values import differing_keys
from fmjax.errors import ConfigError

BASE = {
    "train": {"steps": 4, "batch_size": 8},
    "model": {
        "name": "vit",
        "num_layers": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
    },
    "objective": {"name": "classification"},
    "data": {"name": "digits"},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 2}},
}


def resolve(**overrides):
    return configs.resolve(configs.apply_overrides(BASE, {k.replace("__", "."): v for k, v in overrides.items()}))


def test_defaults_are_written_out_and_survive_json(tmp_path):
    config = resolve()
    assert config.optimizer.b2 == 0.95 and config.mesh.data == -1 and config.optimizer.schedule.final_fraction == 0.1
    configs.save_config(config, tmp_path / "config.json")
    again = configs.resolve(configs.load_workdir_config(tmp_path))
    assert differing_keys(config.to_dict(), again.to_dict()) == []
    with pytest.raises(AttributeError):
        config.train.steps = 5


def test_a_flag_leaves_out_a_section_that_may_be_left_out():
    assert resolve(optimizer__schedule="none").optimizer.schedule is None
    with pytest.raises(ConfigError, match="model.name: unknown model 'none'"):
        resolve(model="none")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train.stepz", "3", "unknown config key 'train.stepz'; did you mean 'steps'?"),
        ("trian.steps", "3", "unknown config key 'trian'; did you mean 'train'?"),
        ("model.hiden_size", "3", "did you mean 'hidden_size'?"),
        ("optimizer.schedule.warmup_step", "3", "optimizer.schedule.warmup_step'; did you mean 'warmup_steps'?"),
        ("optimizer.momentum", "0.9", "unknown config key 'optimizer.momentum'"),
        ("optimizer.name", "adamv", "unknown optimizer 'adamv'; did you mean 'adamw'?"),
        ("objective.name", "nosuch.module:Thing", "no module named 'nosuch'"),
        ("objective.name", "fmjax.errors:Thing", "has no 'Thing'"),
        ("train.steps", "abc", "train.steps = 'abc' (text) should be int"),
        ("train.steps", "1.5", "train.steps = '1.5' (text) should be int"),
        ("train.steps", "True", "should be int"),
        ("train.steps", "0", "train.steps = 0 must be at least 1"),
        ("train.batch_size", "none", "should be int"),
        ("train.nonfinite", "ignore", "should be Literal['stop', 'skip']"),
        ("optimizer.learning_rate", "-1", "must be positive"),
        ("optimizer.schedule.warmup_steps", "-1", "warmup_steps = -1 must be at least 0"),
        ("mesh.data", "0", "mesh.data = 0"),
        ("model.num_heads", "3", "hidden_size=16 is not a multiple of num_heads=3"),
        ("train.steps.more", "1", "train.steps is a value, not a section"),
    ],
)
def test_what_is_wrong_is_named(key, value, message):
    with pytest.raises(ConfigError) as error:
        configs.resolve(configs.apply_overrides(BASE, {key: value}))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("optimizer.learning_rate", "1e-2", 0.01),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.mu_dtype", "None", None),
        ("optimizer.mu_dtype", "bfloat16", "bfloat16"),
        ("optimizer.no_decay", "a,b", ("a", "b")),
        ("optimizer.no_decay", "('a',)", ("a",)),
        ("train.profile_steps", "(2,3)", (2, 3)),
        ("train.profile_steps", "2,3", (2, 3)),
        ("train.tensorboard", "false", False),
        ("train.steps", "12", 12),
    ],
)
def test_command_line_text_takes_the_type_of_its_key(key, text, value):
    config = configs.resolve(configs.apply_overrides(BASE, {key: text}))
    for part in key.split("."):
        config = config[part]
    assert config == value and type(config) is type(value)


MIXTURE = {"code": {"source": "builtin"}, "web": {"source": "web/*.md", "weight": 2}}
MIXED = BASE | {"data": {"mixture": MIXTURE}}


def test_sections_of_a_mixture_are_typed_from_the_command_line_and_completed():
    overrides = {"data.mixture.web.weight": "3", "data.mixture.web.heldout_fraction": "0.1"}
    overrides |= {"data.mixture.code.text_field": "none", "data.mixture.more.source": "12"}
    config = configs.resolve(configs.apply_overrides(MIXED, overrides)).to_dict()
    mixture = config["data"]["mixture"]
    assert mixture["web"]["weight"] == 3.0 and mixture["web"]["heldout_fraction"] == 0.1
    assert mixture["code"] == {
        "source": "builtin", "text_field": None, "document_separator": None, "encoding": None, "tfds_data_dir": None,
        "heldout_fraction": None, "weight": 1.0,
    }  # fmt: skip
    assert mixture["more"]["source"] == "12"
    again = configs.resolve(json.loads(json.dumps(config)))
    assert differing_keys(config, again.to_dict()) == []
    literal = configs.resolve(configs.apply_overrides(MIXED, {"data.mixture": repr(MIXTURE)}))
    assert literal.data.mixture.web.weight == 2.0
    single = configs.resolve(configs.apply_overrides(MIXED, {"data.mixture": "none"}))
    assert single.data.mixture is None


@pytest.mark.parametrize(
    "mixture, message",
    [
        ({"web": {"source": "a", "weight": "3"}}, "data.mixture.web.weight = '3' (str) should be float"),
        ({"web": {"source": "a", "heldout_fraction": "0.1"}}, "data.mixture.web.heldout_fraction = '0.1' (str) should"),
        ({"web": {"source": "a", "weight": -1}}, "data.mixture.web.weight must be a positive number, got -1.0"),
        ({"web": {"source": "a", "heldout_fraction": 1}}, "data.mixture.web.heldout_fraction must be at least 0"),
        ({"web": {"source": "a", "encoding": "latin-one"}}, "data.mixture.web.encoding 'latin-one' is not known"),
        ({"web": {"source": "a", "wieght": 1}}, "'data.mixture.web.wieght'; did you mean 'weight'?"),
        ({"web": {"weight": 1}}, "data.mixture.web.source is missing"),
        ({"web": "a"}, "data.mixture.web must be a section of keys, got 'a'"),
        ("a", "data.mixture = 'a' (str) should be dict | None"),
        ({"c4.en": {"source": "a"}}, "data.mixture: the name 'c4.en' has a dot"),
    ],
)
def test_what_is_wrong_in_a_mixture_is_named(mixture, message):
    with pytest.raises(ConfigError) as error:
        configs.resolve(BASE | {"data": {"mixture": mixture}})
    assert message in str(error.value)


def test_a_missing_section_or_key_is_named():
    with pytest.raises(ConfigError, match="no section 'model'"):
        configs.resolve({k: v for k, v in BASE.items() if k != "model"})
    with pytest.raises(ConfigError, match="train.batch_size is missing"):
        configs.resolve(BASE | {"train": {"steps": 1}})
    with pytest.raises(ConfigError, match="objective.name is missing"):
        configs.resolve(BASE | {"objective": {}})


def test_a_field_that_no_code_reads_is_refused(tmp_path, monkeypatch):
    (tmp_path / "forkplugin.py").write_text(
        textwrap.dedent("""
        import dataclasses
        @dataclasses.dataclass(frozen=True)
        class Objective:
            used: int = 1
            by_name: int = 1
            forgotten: int = 2
            def inputs(self, batch):
                return {"x": getattr(self, "by_name")}
            def __call__(self, apply_fn, params, batch, key, train):
                return self.used
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    configs.resolve(BASE | {"objective": {"name": "forkplugin:Objective", "used": 3, "by_name": 2}})
    with pytest.raises(ConfigError, match="objective.forgotten is declared by .* but none of its code reads it"):
        configs.resolve(BASE | {"objective": {"name": "forkplugin:Objective", "forgotten": 3}})


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n    return 3\n", "must return a ConfigDict, got int"),
        ("def get_config():\n    return {}['a']\n", "line 2: KeyError"),
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("x = 1\n", "defines no function get_config()"),
    ],
)
def test_a_config_file_that_does_not_work_is_one_message(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        configs.load_config_file(str(tmp_path / "c.py"))
    assert message in str(error.value)


def test_a_misspelt_config_file_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "quickstart.py").write_text("")
    with pytest.raises(ConfigError, match="did you mean '.*quickstart.py'"):
        configs.load_config_file(str(tmp_path / "quikstart.py"))


def test_a_config_file_looked_for_from_another_folder_is_found_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quikstart"):
        with pytest.raises(ConfigError, match=rf"did you mean '{configs.REPOSITORY}/configs/quickstart.py'\?"):
            configs.load_config_file(f"configs/{name}.py")
    with pytest.raises(ConfigError, match=rf"'mine/a.py' does not exist; there is no folder '{tmp_path}/mine'"):
        configs.load_config_file("mine/a.py")
    with pytest.raises(ConfigError, match=rf"'a.py' does not exist; {tmp_path} has: no .py file"):
        configs.load_config_file("a.py")


def test_an_argument_that_a_config_does_not_take_or_needs_is_said(tmp_path):
    (tmp_path / "none.py").write_text("def get_config():\n    return {}\n")
    (tmp_path / "one.py").write_text("def get_config(size):\n    return {'size': size}\n")
    with pytest.raises(
        ConfigError, match=r"none.py' takes no argument, and 'tiny' was given: --config=.*none.py is all"
    ):
        configs.load_config_file(f"{tmp_path}/none.py:tiny")
    with pytest.raises(ConfigError, match=r"one.py' needs an argument .*'size'\): --config=.*one.py:ARGUMENT"):
        configs.load_config_file(f"{tmp_path}/one.py")
    with pytest.raises(ConfigError, match=r"gpt1.py', line \d+: there is no 'tinny'; its docstring says"):
        configs.load_config_file(f"{configs.REPOSITORY}/configs/gpt1.py:tinny")
    assert configs.load_config_file(f"{tmp_path}/one.py:tiny") == {"size": "tiny"}


def test_the_command_exits_with_2_and_one_message(tmp_path, capsys):
    text = json.dumps(json.dumps(BASE))
    (tmp_path / "c.py").write_text(f"import json\ndef get_config():\n    return json.loads({text})\n")
    argv = [f"--config={tmp_path}/c.py", f"--workdir={tmp_path}/run"]
    command = [sys.executable, "-m", "fmjax.train", *argv, "--config.train.stpes=3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'steps'?" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert cli.run(train.main, [*argv, "--wrkdir=3"]) == 2
    assert "did you mean '--workdir'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
