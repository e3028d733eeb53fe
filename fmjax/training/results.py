"""What a run tells on the way and at its end: rows of metrics, evaluations, samples, tasks. Process 0 writes them."""

import logging
from collections.abc import Callable

import jax
import numpy as np

from fmjax.objectives.base import is_on_policy
from fmjax.parallel import watch
from fmjax.training import final_tasks
from fmjax.training.evaluation import evaluate_loss, evaluate_prompts
from fmjax.training.metrics import MetricsWriter, plot_loss
from fmjax.training.program import SAMPLES
from fmjax.training.sampling import SampleLog, draw
from fmjax.training.start import Setup
from fmjax.training.state import TrainState

log = logging.getLogger("fmjax")


class Results:
    """Computes and writes the results of a run that starts at `step`; what is written of that step is not made again.

    All processes call the methods.

    Args:
      leave: called where what is under way can be done again when the run resumes; what it raises ends it there.

    Attributes:
      latest: the last value of each metric.
    """

    def __init__(self, setup: Setup, step: int, leave: Callable[[], None]):
        self.setup, self.leave = setup, leave
        self.samples = self.writer = None
        self.last_texts: list[str] = []
        self.latest: dict[str, float] = {}
        done = np.array([0, 0])
        if jax.process_index() == 0:
            self.samples = SampleLog(setup.workdir, step)
            self.writer = MetricsWriter(setup.workdir, step, setup.settings.tensorboard)
            self.latest |= self.writer.found
            done = np.array([any(name.startswith("eval/") for name in self.writer.found), self.samples.found], int)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            done = multihost_utils.broadcast_one_to_all(done)
        self.evaluated_step, self.sampled_step = (step if one else -1 for one in done)

    def write(self, step: int, values: dict[str, float], again: bool = False) -> None:
        """A row of metrics; with `again` it stands in place of what an earlier run wrote of the same step."""
        self.latest |= values
        if self.writer is not None:
            (self.writer.replace if again else self.writer.write)(step, values)

    def evaluate(self, state: TrainState) -> None:
        """The evaluation loss, where there are data for it and the objective has one."""
        step, data, settings, program = int(state.step), self.setup.data, self.setup.settings, self.setup.program
        if not data.evaluation or self.evaluated_step == step:
            return
        size, most = settings.batch_size, settings.eval_batches
        if not is_on_policy(program.objective):
            params = program.average(state)
            results = evaluate_loss(program, params, data.evaluation, size, most, self.leave, state.carry)
        elif hasattr(program.objective, "assess"):
            results = evaluate_prompts(program, self.setup.model(state), data.evaluation, size, most, self.leave)
        else:
            return
        self.evaluated_step = step
        self.write(step, results)
        if self.writer is not None:
            if step < settings.steps:  # at the end it is drawn once, with or without an evaluation
                plot_loss(self.setup.workdir)
            log.info("step %d: %s", step, "  ".join(f"{k} {v:.4g}" for k, v in results.items()))

    def sample(self, state: TrainState) -> None:
        """What the objective draws from the model, where it can."""
        step, program = int(state.step), self.setup.program
        if not self.setup.can_sample or self.sampled_step == step:
            return
        self.leave()
        watch.at(f"the samples of step {step}")
        with program.inference():
            model = self.setup.model(state).served
            values = draw(program.objective, model, self.setup.data, program.key_for(SAMPLES, step))
        self.sampled_step = step
        if self.writer is not None and values:
            self.last_texts = [value for value in values if isinstance(value, str)]
            self.samples.write(step, values, model.codec, self.writer)

    def run_tasks(self, state: TrainState) -> None:
        """The evaluation tasks the config asks for; at the end their lines come last on the terminal."""
        setup, settings = self.setup, self.setup.settings
        if not settings.final_tasks:
            return
        self.leave()
        watch.at(f"the tasks of step {int(state.step)}", limited=False)
        found = final_tasks.run(
            settings.final_tasks, setup.model(state).served, setup.data, settings.final_tasks_limit, setup.progress,
            setup.workdir,
        )  # fmt: skip
        for name, result in found.items():
            values = {f"{name}/{k}": v for k, v in result.metrics.items() if v is not None}
            self.write(int(state.step), values, again=True)
            log.info("%s", result.headline)

    def show(self) -> None:
        """The loss curve; on the terminal the last samples, and where everything is."""
        if self.writer is None:
            return
        plot_loss(self.setup.workdir)
        for text in self.last_texts:
            log.info("%s\n%s", "-" * 40, text)
        names = ("loss.png", "samples.txt", "samples", "metrics.jsonl", "results.json", "checkpoints")
        found = ", ".join(name for name in names if (self.setup.workdir / name).exists())
        log.info("%s\n%s: %s", "-" * 40, self.setup.workdir, found)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
