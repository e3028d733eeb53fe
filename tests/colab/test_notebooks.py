"""Every notebook runs from top to bottom, with a short training."""

import os
import pathlib
import sys

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[2] / "colab"
SHOWN = {
    "quickstart": ("bits_per_byte", "image/png"),
    "plugins": ("image/png", "perplexity", "kl", "eval/reward"),
    "diffusion": ("image/png", "fd_pixels_train", "closer", "dpmpp_2m", "ema_decay"),
    "align": ("rewards", "image/png", "reward_taste", "train/reply_kl", "dpo"),
    "images": ("image/png", "images_zero_shot:shapes", "acc_drop", ".png"),
    "compress": ("image/png", "bits_per_byte", "int4 by GPTQ", "2:4, trained on", "50%"),
}
"""What the outputs of each notebook must have among them."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for all of them, each of which begins by importing what this one has: a process of one device."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = folder / "kernels" / "python3"  # of this interpreter, whatever kernels the machine has registered
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["%s", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "p", '
        '"language": "python"}'
        % sys.executable
    )
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join(paths)})
        yield manager
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_notebook_runs_from_top_to_bottom(notebook, kernel, tmp_path):
    settings = {
        "FMJAX_NOTEBOOK_STEPS": "4", "FMJAX_NOTEBOOK_SOURCE": str(FOLDER.parent / "fmjax" / "layers" / "*.py"),
        "FMJAX_NOTEBOOK_WORKDIR": str(tmp_path / "run"),
    }  # fmt: skip
    cells = nbformat.read(notebook, as_version=4)
    begin = f"%reset -f\nimport os\nos.environ |= {settings}\nos.chdir({str(tmp_path)!r})"
    cells.cells.insert(0, nbformat.v4.new_code_cell(begin))
    done = NotebookClient(cells, km=kernel, timeout=600).execute()
    assert list((tmp_path / "run").rglob("loss.png"))
    text = "".join(str(cell.get("outputs")) for cell in done.cells)
    assert not [word for word in SHOWN[notebook.stem] if word not in text]
