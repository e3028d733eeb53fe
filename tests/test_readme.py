"""The README's commands are understood: flags, config files and every overridden key; the files it names exist."""

import pathlib
import re
import shlex

import pytest

from fmjax import config as configs
from fmjax import convert, evaluate, generate, plan, train
from fmjax.tasks import lm_eval

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python -m fmjax\.([\w.]+) ([^\n`&]+)", README)


@pytest.mark.parametrize("module, arguments", COMMANDS, ids=[f"{m} {a[:50]}" for m, a in COMMANDS])
def test_every_command_parses(module, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = shlex.split(arguments)
    if module == "train":
        flags, overrides = train.parse(argv)
        configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    elif module == "generate":
        generate.parse(argv)
    elif module == "plan":
        flags, overrides = plan.parse(argv)
        configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    elif module == "convert":
        convert.parse(argv)
    elif module == "interop.lm_eval":
        lm_eval.parse(argv)
    else:
        assert module == "evaluate"
        evaluate.parse(argv)


def test_every_file_it_names_is_there():
    assert len(COMMANDS) >= 8
    named = re.findall(r"\]\(([\w/.]+)\)", README) + re.findall(
        r"`((?:fmjax|tests|configs|colab|experiments)/[\w/.]+)`", README
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing and len(named) > 15
