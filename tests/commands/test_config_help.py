"""The keys of configs explained: no key lacks a meaning, the page is that of the code, a config's own are printed."""

import pathlib

import fmjax
from fmjax import train
from fmjax.commands import cli, config_help
from fmjax.commands.config_meanings import keys_of
from fmjax.config import PLUGINS, SETTINGS


def test_no_key_lacks_a_meaning():
    registries = config_help.registries(PLUGINS)
    named = {f"{path} {name}": registry.get(name) for path, registry in registries.items() for name in registry.table}
    assert {"model llama", "optimizer.schedule cosine", "model.rope_scaling yarn"} < named.keys()
    untold = [(where, key.name) for where, it in (SETTINGS | named).items() for key in keys_of(it) if not key.meaning]
    assert not untold, "add it under `Attributes:` of the class, or as a comment behind the field"


def test_the_page_is_up_to_date():
    page = pathlib.Path(fmjax.__file__).with_name("CONFIG.md").read_text()
    assert page == config_help.page(), "python -m fmjax.commands.config_help > fmjax/CONFIG.md"


def test_the_keys_of_a_config_are_printed(tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "def get_config():\n"
        "    mixture = {'code': {'source': 'builtin', 'weight': 3.0}}\n"
        "    return {'train': {'steps': 3}, 'objective': {'name': 'causal_lm'}, 'data': {'mixture': mixture},\n"
        "            'optimizer': {'name': 'lion', 'schedule': {'name': 'cosine'}}}\n"
    )
    command = [f"--config={file}", "--config.help", "--config.train.log_every=7", "--config.model.name=gpt"]
    assert cli.run(train.main, command) == 0  # though train.batch_size is missing, of which it tells
    out = capsys.readouterr().out
    assert "train.steps = 3\n    int, no default: optimizer updates in all" in out
    assert "train.batch_size = (to be set)\n" in out and "train.log_every = 7\n    int, default 10: " in out
    assert "model.name = gpt\n    str, no default: actor_critic, autoencoder_kl, " in out
    assert "model.position_init_std = 0.01" in out
    assert "data.name = 'text'" in out and "data.mixture.code.weight = 3.0\n    float, default 1.0: its share" in out
    assert "optimizer.schedule.final_fraction = 0.1" in out


def test_a_run_still_needs_its_folder(capsys):
    assert cli.run(train.main, ["--config=configs/quickstart.py"]) == 2
    assert "required: --workdir" in capsys.readouterr().err
