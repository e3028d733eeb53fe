"""The training loop: batches in, steps dispatched ahead, numbers out, states saved."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import jax
from tqdm.contrib.logging import logging_redirect_tqdm

from fmjax.checkpoint_files import last_good
from fmjax.data.loader import Loader
from fmjax.errors import InputError, RunError, first_line
from fmjax.objectives.base import is_on_policy
from fmjax.parallel import watch
from fmjax.parallel.hosts import check_shared
from fmjax.parallel.sharding import to_global
from fmjax.training import final_tasks, resume
from fmjax.training.checkpoint import Checkpointer, SaveError
from fmjax.training.clock import Completions, make_clock
from fmjax.training.disk import disk_full
from fmjax.training.experience import Experience
from fmjax.training.profile import Profile
from fmjax.training.progress import Progress
from fmjax.training.results import Results
from fmjax.training.start import Setup, beginning, first_state, prepare
from fmjax.training.state import TrainState
from fmjax.training.stopping import Stop, stop_signals

log = logging.getLogger("fmjax")


class NonFiniteError(RunError):
    """The loss, a gradient or an update is not finite and the run was told to stop."""


class _Stopped(Exception):
    """A signal came while the run was doing something that the resumed run can do again."""


def train(config, workdir, *, cache_dir, progress: bool = True, started: float | None = None) -> dict[str, float]:
    """Trains as `config` (from `fmjax.config.resolve`) says, resuming whatever `workdir` holds.

    Args:
      cache_dir: where tokenised data and tokenizers are kept between runs.
      progress: show progress bars.
      started: `time.time()` of the command's start, for the time to the first step.

    Returns:
      The last metrics of each name, with "stopped" = 1.0 when a signal ended the run before its last step.

    Raises InputError subclasses for what the user can mend, NonFiniteError, and SaveError when the disk is full.
    """
    workdir = pathlib.Path(workdir)
    started = time.time() if started is None else started
    final_tasks.check_names(config.train.final_tasks)
    try:
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(resume.locked(workdir))
            check_shared(workdir)
            resume.check_config(workdir, config, complete=False)
            stop = stack.enter_context(stop_signals())
            setup = prepare(config, workdir, pathlib.Path(cache_dir), progress, started)
            with Run(setup, stop) as run:
                return run.steps()
    except Exception as error:
        if isinstance(error, SaveError | InputError) or not disk_full(error):
            raise
        raise SaveError(
            f"{getattr(error, 'filename', None) or str(workdir)!r} could not be written ({first_line(error)}); "
            f"{last_good(workdir)}. Is the disk full? Make room and run the same command again to resume."
        ) from error


class Unread(NamedTuple):
    """A step that was dispatched and whose metrics the host has not read.

    `completed` gives the `time.perf_counter()` at which it was complete, where a row is due; `input_wait` is the
    loader's seconds waited up to its batch.
    """

    step: int
    metrics: dict[str, jax.Array]
    completed: Future | None
    input_wait: float


class Run:
    """One process's part in a run: its state, the steps that change it, and what is due between them.

    Args:
      stop: set when a signal asks the run to end.
    """

    def __init__(self, setup: Setup, stop: Stop):
        self.setup, self.stop = setup, stop
        self.program, self.settings, self.workdir = setup.program, setup.settings, setup.workdir
        self.unread: Unread | None = None
        with contextlib.ExitStack() as opened:
            keep = lambda resource: opened.enter_context(contextlib.closing(resource))
            self.identity = setup.identity()
            begun = beginning(setup)  # before there is a folder of checkpoints, which an error would leave behind
            self.checkpointer = Checkpointer(self.workdir, self.settings.keep_last, self.settings.keep_every)
            opened.callback(self.checkpointer.manager.close)
            self.state = first_state(setup, self.checkpointer, self.identity, begun)
            self.step = self.saved_step = int(self.state.step)
            setup.save()
            self.results = keep(Results(setup, self.step, self._leave_if_stopped))
            self.profile = keep(Profile(self.settings.profile_steps, self.workdir / "profile"))
            self.loader = keep(self._loader())
            self.clock = make_clock(self.program, self.settings.batch_size)
            self.completions = keep(Completions())
            self.resources = opened.pop_all()

    def _loader(self) -> Loader | Experience:
        rows, size = self.setup.data.train, self.settings.batch_size
        if is_on_policy(self.program.objective):
            return Experience(self.program, rows, size, self.setup.rows)
        return Loader(rows, size, self.setup.rows, self.step)

    def steps(self) -> dict[str, float]:
        """Runs to the last step, or until a signal; saves, evaluates and samples on the way and at the end."""
        last = self.settings.steps
        try:
            if self.step >= last:
                log.info("%s is already at step %d of %d", self.workdir, self.step, last)
            else:
                self.setup.say()
                self.progress = Progress(self.step, last, self.setup.progress)
                with contextlib.closing(self.progress), logging_redirect_tqdm([log]):
                    self._steps()
            self._save(self.state)
            if self.step >= last:
                self._finish()
                return self.results.latest
        except _Stopped:
            self._save(self.state)
        self.checkpointer.finish()
        if self.step:
            log.info("stopped by a signal; saved at step %d of %d; the same command resumes", self.step, last)
        else:
            log.info("stopped by a signal before the first step; nothing was saved; the same command starts again")
        return self.results.latest | {"stopped": 1.0}

    def _steps(self) -> None:
        """The steps: each is dispatched before the metrics of the one before it are read."""
        watch.at("the compilation of the train step", limited=False)
        train_step = self.setup.compiled()
        watch.barrier("the first step")
        if self.step and self._due():
            self._pause()  # what the run was about to do when it ended
        self.clock.restart(self.loader.wait_seconds)
        self.stop.training = True
        while self.step < self.settings.steps and not self._must_stop():
            self.profile.at(self.step + 1, self.state)
            if self.loader.due(self.step):
                self._read()
                self._collect()
            batch = to_global(next(self.loader), self.setup.rows, self.program.batch_spec)
            watch.at(f"step {self.step + 1}")
            self.state, metrics = train_step(self.state, batch, self.program.key, *self.program.others)
            self.step += 1
            # The device computes this step while the host reads the one before (but for `fmjax.cpu.run_in_turn`).
            self._read()
            completed = self.completions.of(metrics) if self._logs() else None
            self.unread = Unread(self.step, metrics, completed, self.loader.wait_seconds)
            if self.step == self.progress.first:
                self._read_first()
            else:
                self.progress.estimate(self.step)
            if self._due():
                self._read()
                self._pause()
        self._read()
        self.profile.at(None, self.state)

    def _logs(self) -> bool:
        return self.step % self.settings.log_every == 0 or self.step == self.settings.steps

    def _collect(self) -> None:
        """Rows from the model as it is now. A run that a signal ends in here makes them again when it resumes."""
        model = self.setup.model(self.state, jax.block_until_ready(self.state.params))
        begin = time.perf_counter()
        self.loader.collect(self.step, model)
        self.clock.collected(time.perf_counter() - begin)
        self._leave_if_stopped()

    def _read(self) -> None:
        """Reads the metrics of a step, waiting for it if it is still running; stops the run if they are not finite.

        The clock's interval ends where the step was complete, not where it is read, and counts the waiting for input
        up to its own batch.
        """
        if self.unread is None:
            return
        (step, metrics, completed, input_wait), self.unread = self.unread, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.clock.steps += 1
        if not values.pop("finite"):
            self._not_finite(step, values)
        self.progress.bar.update(1)
        if completed is None:
            return
        speed = self.clock.read(input_wait, completed.result())
        row = {f"train/{name}": value for name, value in values.items()}
        if step != self.progress.first:  # the first step of a process says nothing about speed
            if rate := self.loader.rows_per_core_second:
                speed["perf/rows_per_core_second"] = rate
            row |= speed
            self.progress.say_waiting(speed)
        self.results.write(step, row)
        self.progress.show(row)
        self.checkpointer.check()

    def _read_first(self) -> None:
        """Of the first step of a process, which is read at once."""
        jax.block_until_ready(self.unread.metrics)
        seconds = time.time() - self.setup.started
        self.results.write(self.step, {"perf/seconds_to_first_step": seconds})
        self._read()
        self.progress.first_done(seconds)
        self.clock.restart(self.loader.wait_seconds)

    def _not_finite(self, step: int, values: dict[str, float]) -> None:
        norms = f"gradient norm {values['grad_norm']}, update norm {values['update_norm']}"
        what = f"step {step}: loss {values['loss']}, {norms}"
        if self.settings.nonfinite == "skip":
            log.warning("%s: update skipped (%d so far)", what, int(values["skipped"]))
            return
        with contextlib.suppress(Exception):
            self.checkpointer.finish()
        raise NonFiniteError(
            f"training stopped at {what}; {last_good(self.workdir)} in {str(self.workdir / 'checkpoints')!r}. "
            "Lower optimizer.learning_rate or set train.nonfinite='skip' to leave such updates out"
        )

    def _due(self) -> list[Callable]:
        """What the run does with the state of this step before the next one, in this order."""
        one, results = self.settings, self.results
        work = (
            (one.checkpoint_every, self._save),
            (one.eval_every, results.evaluate),
            (one.sample_every, results.sample),
            (one.tasks_every, results.run_tasks),
        )
        return [do for every, do in work if every > 0 and self.step % every == 0 and self.step < one.steps]

    def _pause(self) -> None:
        """What is due; its time does not count as training speed.

        A run that ends in here has saved the step, and does the rest when it resumes.
        """
        begin = time.perf_counter()
        for do in self._due():
            do(self.state)
        self.clock.pause(time.perf_counter() - begin)

    def _save(self, state: TrainState) -> None:
        if self.step != self.saved_step:
            self.checkpointer.save(state, self.identity)
            self.saved_step = self.step

    def _finish(self) -> None:
        if self.settings.eval_every >= 0:
            self.results.evaluate(self.state)
        if self.settings.sample_every >= 0:
            self.results.sample(self.state)
        self.checkpointer.finish()
        self.results.show()
        self.results.run_tasks(self.state)

    def _must_stop(self) -> bool:
        return self.stop.agreed(self.step) and not self._inside_rollout

    def _leave_if_stopped(self) -> None:
        # With several processes all must leave at the same place, which only the training steps agree on.
        if jax.process_count() == 1 and self.stop.is_set() and not self._inside_rollout:
            raise _Stopped

    @property
    def _inside_rollout(self) -> bool:
        """Whether a run that is saved now could not be resumed: the next rows came from parameters that are gone."""
        return self.step % getattr(self.program.objective, "rollout_steps", 1) != 0

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Releases files, threads and the checkpoint folder; a save under way is completed.

        Each is released whatever becomes of the others, and none of their failures hides the error that ended the run.
        """
        try:
            self.resources.close()
        except Exception as closing:
            if error is None:
                raise
            log.debug("while closing: %s", first_line(closing))
