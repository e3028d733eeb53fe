"""Every notebook runs from top to bottom, with a short training."""

import os
import pathlib
import sys

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[2] / "colab"
SHOWN = {
    "quickstart": ("bits_per_byte", "image/png"),
    "plugins": ("image/png", "perplexity", "kl", "eval/reward"),
    "diffusion": ("image/png", "fd_pixels_train", "closer", "dpmpp_2m", "ema_decay"),
    "align": ("rewards", "image/png", "reward_taste", "train/reply_kl", "dpo"),
    "images": ("image/png", "images_zero_shot:shapes", "acc_drop", ".png"),
}
"""What the outputs of each notebook must have among them."""


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_NOTEBOOK_STEPS", "4")
    monkeypatch.setenv("FMJAX_NOTEBOOK_SOURCE", str(FOLDER.parent / "fmjax" / "layers" / "*.py"))
    monkeypatch.setenv("FMJAX_NOTEBOOK_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    # The kernel of this interpreter, whatever kernels the machine has registered.
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["%s", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "p", '
        '"language": "python"}'
        % sys.executable
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    done = NotebookClient(nbformat.read(notebook, as_version=4), timeout=600, kernel_name="python3").execute(
        cwd=str(tmp_path)
    )
    assert list((tmp_path / "run").rglob("loss.png"))
    text = "".join(str(cell.get("outputs")) for cell in done.cells)
    assert not [word for word in SHOWN[notebook.stem] if word not in text]
