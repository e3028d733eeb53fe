"""Where a run's numbers and samples go: `metrics.jsonl`, TensorBoard, `samples.txt`, and the picture `loss.png`."""

import itertools
import json
import math
import pathlib

from fmjax.small_files import replacing, write_whole
from fmjax.training.tensorboard import TensorBoard


class MetricsWriter:
    """Appends a run's metrics to `WORKDIR/metrics.jsonl` and TensorBoard.

    Args:
      workdir: the run's folder.
      start_step: lines of later steps, which a killed run wrote after its last checkpoint, are dropped, as is a line
        the kill tore; so the file never holds a step twice.

    Attributes:
      found: what the file already holds of `start_step` itself.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int = 0, tensorboard: bool = True):
        self.path = workdir / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= start_step]
        self.found = {name: v for row in kept if row["step"] == start_step for name, v in row.items() if name != "step"}
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.tensorboard = TensorBoard(workdir / "tensorboard", start_step) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: the step and `values`; a value that is not finite is written as null, which JSON can hold."""
        row = {"step": step} | {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.tensorboard is not None:
            self.tensorboard.scalars(step, values)

    def replace(self, step: int, values: dict[str, float]) -> None:
        """As `write`, dropping what an earlier run of the command wrote under the same names for the same step."""
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["step"] != step or not values.keys() & row.keys()]
        if len(kept) < len(rows):
            self.file.close()
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))
            self.file = self.path.open("a", encoding="utf-8")
        self.write(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard."""
        if self.tensorboard is not None:
            self.tensorboard.text(step, name, text)

    def show(self, kind: str, step: int, name: str, path: pathlib.Path) -> None:
        """A file of values for TensorBoard, by its summary of this kind (`Codec.shown`)."""
        if self.tensorboard is not None:
            getattr(self.tensorboard, kind)(step, name, path)

    def close(self) -> None:
        """Closes both files, also when the first cannot be written to its end."""
        try:
            self.file.close()
        finally:
            if self.tensorboard is not None:
                self.tensorboard.close()


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The complete lines of a `metrics.jsonl`; none when the file does not exist. A torn last line is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def plot_loss(workdir: pathlib.Path) -> None:
    """Draws `loss.png`: training loss by step (faint, and smoothed), and the evaluation losses where there are any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(workdir / "metrics.jsonl")
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = sorted({k for row in rows for k in row if k.endswith("/loss")}, key=lambda n: (n != "train/loss", n))
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        steps, values = zip(*points) if points else ((), ())
        if name == "train/loss":
            (line,) = axes.plot(steps, values, alpha=0.3, linewidth=1)
            axes.plot(steps, _smooth(values), color=line.get_color(), label=name)
        else:
            axes.plot(steps, values, marker="o", markersize=4, label=name)
    axes.set(xlabel="step", ylabel="loss (nats)" if names else "loss", title=workdir.name)
    axes.grid(alpha=0.3)
    if names:
        axes.legend()
    with replacing(workdir / "loss.png") as partial:
        figure.savefig(partial, format="png")


def _smooth(values) -> list[float]:
    """The mean over a window centred on each value, so that the curve does not lag; narrower towards the ends."""
    half, count = max(round(0.05 * len(values)), 1), len(values)
    sums = [0.0, *itertools.accumulate(values)]
    reaches = [min(half, index, count - 1 - index) for index in range(count)]
    return [(sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1) for i, reach in enumerate(reaches)]
