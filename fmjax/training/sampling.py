"""What a run draws from its model on the way: texts go to `samples.txt`, other values to `samples/STEP/`."""

import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

from fmjax.data.base import stacked
from fmjax.small_files import write_whole


class SampleLog:
    """Writes values drawn from the model: texts to `WORKDIR/samples.txt`, a block a step; others as their codec does,
    each to `WORKDIR/samples/STEP/` and all of them together to `all` there.

    Args:
      start_step: what is of later steps, and what a kill tore, is dropped, as in `MetricsWriter`.

    Attributes:
      found: whether the samples of `start_step` are there already.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int = 0):
        self.path, self.folder = workdir / "samples.txt", workdir / "samples"
        blocks = [(step, block) for step, block in read_blocks(self.path) if step <= start_step]
        self.found = any(step == start_step for step, _ in blocks)
        if self.path.exists():
            write_whole(self.path, "".join(block for _, block in blocks))
        for folder in self.folder.glob("[0-9]*"):  # the answers to tasks lie beside them
            step = folder.name.removesuffix(".part")
            if folder.is_dir() and step.isdigit() and (step != folder.name or int(step) > start_step):
                shutil.rmtree(folder)
        self.found = self.found or (self.folder / str(start_step)).is_dir()

    def write(self, step: int, values: Sequence[Any], codec, writer) -> None:
        """Writes the values of `step`.

        Args:
          codec: of values that are no texts (`fmjax.data.codecs.base.Codec`).
          writer: a `MetricsWriter`, for TensorBoard.
        """
        if isinstance(values[0], str):
            writer.text(step, "samples", self._append(step, values))
            return
        whole = self.folder / f"{step}.part"  # the folder of a step is there with all of it or not at all
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir(parents=True)
        for index, value in enumerate(values):
            codec.write(value, whole / f"{index}{codec.suffix}")
        codec.write_all(values, whole / f"all{codec.suffix}")
        target = self.folder / str(step)
        shutil.rmtree(target, ignore_errors=True)
        whole.rename(target)
        if kind := getattr(codec, "shown", None):
            writer.show(kind, step, "samples", target / f"all{codec.suffix}")

    def _append(self, step: int, texts: Sequence[str]) -> str:
        block = f"===== step {step} =====\n" + "\n-----\n".join(texts) + "\n\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(block)
        return block


def draw(objective, model, data, key) -> list:
    """The values that an objective samples, shown rows of the data where it asks for them."""
    if not hasattr(objective, "num_shown"):
        return objective.sample(model, key)
    examples = next(iter(data.evaluation.values()))
    chosen = [examples[i] for i in range(min(objective.num_shown(), len(examples)))]
    return objective.sample(model, key, rows=stacked(chosen))


def read_blocks(path: pathlib.Path) -> list[tuple[int, str]]:
    """(step, block) of each complete block of a `samples.txt`; none when the file does not exist."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    parts = re.split(r"^(===== step (\d+) =====\n)", text, flags=re.MULTILINE)[1:]
    blocks = [(int(step), header + body) for header, step, body in zip(parts[::3], parts[1::3], parts[2::3])]
    return [(step, block) for step, block in blocks if block.endswith("\n\n")]
