"""The page on extending fmjax: the package that its examples make trains as it stands."""

import pathlib
import re
import sys

import pytest

import fmjax
from fmjax import config as configs
from fmjax.training.loop import train

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
