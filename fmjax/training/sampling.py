"""What a run draws from its model on the way: and `samples.txt`."""

import pathlib
import re

from fmjax.training.metrics import rewrite


class SampleLog:
    """Appends texts drawn from the model to `WORKDIR/samples.txt`, a block a step.

    Args:
      start_step: blocks of later steps, and one that a kill tore, are dropped, as in `MetricsWriter`.

    Attributes:
      found: whether the file already holds `start_step`.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int = 0):
        self.path = workdir / "samples.txt"
        blocks = [(step, block) for step, block in read_samples(self.path) if step <= start_step]
        self.found = any(step == start_step for step, _ in blocks)
        if self.path.exists():
            rewrite(self.path, "".join(block for _, block in blocks))

    def write(self, step: int, texts: list[str]) -> str:
        """Appends the block of `step`, and returns it."""
        block = f"===== step {step} =====\n" + "\n-----\n".join(texts) + "\n\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(block)
        return block


def read_samples(path: pathlib.Path) -> list[tuple[int, str]]:
    """(step, block) of each complete block of a `samples.txt`; none when the file does not exist."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    parts = re.split(r"^(===== step (\d+) =====\n)", text, flags=re.MULTILINE)[1:]
    blocks = [(int(step), header + body) for header, step, body in zip(parts[::3], parts[1::3], parts[2::3])]
    return [(step, block) for step, block in blocks if block.endswith("\n\n")]
