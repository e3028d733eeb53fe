"""Where a run's numbers go: `metrics.jsonl`, TensorBoard, and the picture `loss.png`."""

import json
import math
import pathlib


class MetricsWriter:
    """Appends a run's metrics to `WORKDIR/metrics.jsonl` and TensorBoard.

    Args:
      workdir: the run's folder.
      start_step: lines of later steps, which a killed run wrote after its last checkpoint, are dropped, as is a line
        the kill tore; so the file never holds a step twice.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int = 0, tensorboard: bool = True):
        self.path = workdir / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= start_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self.path)
        self.file = self.path.open("a", encoding="utf-8")
        self.tensorboard = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: the step and `values`; a value that is not finite is written as null, which JSON can hold."""
        row = {"step": step} | {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard."""
        if self.tensorboard is not None:
            self.tensorboard.add_text(name, text, step)

    def close(self) -> None:
        self.file.close()
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
    temporary = workdir / "loss.tmp.png"
    figure.savefig(temporary)
    temporary.replace(workdir / "loss.png")


def _smooth(values, weight: float = 0.9) -> list[float]:
    """Exponential moving average without the pull towards the first value."""
    smoothed, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        smoothed.append(total / norm)
    return smoothed
