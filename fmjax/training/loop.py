"""The training loop: batches in, steps dispatched ahead, numbers out, states saved."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import sys
import time

import jax
import numpy as np
from ml_collections import FrozenConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fmjax.assemble import build_module, completed, open_data
from fmjax.checkpoint_files import last_good
from fmjax.config import build, load_workdir_config, save_config
from fmjax.data.codecs.base import fingerprint, save_codecs
from fmjax.data.loader import Loader
from fmjax.errors import InputError, RunError, first_line
from fmjax.inference.model import Model
from fmjax.layers.weights import bare
from fmjax.objectives.base import is_on_policy
from fmjax.parallel import watch
from fmjax.parallel.hosts import check_same, check_shared, connect
from fmjax.parallel.sharding import local_rows
from fmjax.training import OPTIMIZERS, budget, final_tasks, resume
from fmjax.training.checkpoint import Checkpointer, SaveError
from fmjax.training.checks import check_fit, check_outputs, say_context
from fmjax.training.clock import Clock, Completions
from fmjax.training.disk import disk_full
from fmjax.training.evaluation import evaluate_loss, evaluate_prompts, to_global
from fmjax.training.experience import Experience
from fmjax.training.metrics import MetricsWriter, plot_loss
from fmjax.training.other_models import fingerprints
from fmjax.training.profile import Profile
from fmjax.training.program import SAMPLES, make_program, with_steps
from fmjax.training.sampling import SampleLog, draw
from fmjax.training.schedule import shortened
from fmjax.training.settings import TrainConfig
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
            with Run(config, workdir, pathlib.Path(cache_dir), progress, started) as run:
                return run.steps(stop)
    except Exception as error:
        if isinstance(error, SaveError | InputError) or not disk_full(error):
            raise
        raise SaveError(
            f"{getattr(error, 'filename', None) or str(workdir)!r} could not be written ({first_line(error)}); "
            f"{last_good(workdir)}. Is the disk full? Make room and run the same command again to resume."
        ) from error


class Run:
    """One process's part in a run: the program, its data, and where results go."""

    def __init__(self, config, workdir: pathlib.Path, cache_dir: pathlib.Path, progress: bool, started: float):
        with contextlib.ExitStack() as opened:
            self._open(opened, config, workdir, cache_dir, progress, started)
            self.resources = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack, config, workdir, cache_dir, progress, started) -> None:
        self.workdir, self.started = workdir, started
        self.settings = TrainConfig(**config["train"])
        self.main = jax.process_index() == 0
        self.progress = progress and self.main
        self.data = open_data(config, cache_dir, workdir, self.progress)
        module = build_module(config, self.data.model_fields)
        check_fit(config, self.data, module)
        say_context(config, module)
        self.config = config = completed(config, module)
        resume.check_config(workdir, config)
        self.published = self._published()
        example = self.data.train[0]
        self.program = make_program(config, module, example)
        connect(self.program.mesh)
        plain = config.to_dict()
        self.can_sample = check_outputs(self.settings, self.program.objective, module, self.data, plain)
        self.rows = local_rows(self.settings.batch_size, self.program.batch_sharding)
        self.train_step = None  # compiled, once it is
        if self.settings.max_minutes:
            self._set_steps(self._steps_in_time())
        # Traced before anything is written: what the objective returns is checked on the way.
        self.lowered = None if self.train_step else self.program.lower_train_step()
        self.checkpointer = Checkpointer(workdir, self.settings.keep_last, self.settings.keep_every)
        opened.callback(self.checkpointer.manager.close)
        self.meta = {"data": self.data.identity}
        if self.program.models:
            self.meta["model"] = fingerprints(self.program.models, self.program.placement)
        if self.data.codecs:
            self.meta["codec"] = {name: fingerprint(codec) for name, codec in self.data.codecs.items()}
        check_same(self.meta)
        self.state = self._start()
        self.saved_step = self.step = int(self.state.step)
        if self.main:
            save_config(self.config, workdir / "config.json", self.published)
            if self.data.tokenizer is not None:
                self.data.tokenizer.save(workdir)
            save_codecs(self.data.codecs, workdir)
        self.writer = self.samples = None
        self.last_samples: list[str] = []
        self.latest: dict[str, float] = {}
        if self.main:
            self.writer = MetricsWriter(workdir, self.step, self.settings.tensorboard)
            opened.callback(self.writer.close)
            self.samples = SampleLog(workdir, self.step)
            self.latest |= self.writer.found
        self.evaluated_step, self.sampled_step = self._done_before()
        self.profile = Profile(self.settings.profile_steps, workdir / "profile")
        opened.callback(self.profile.close)
        self.loader = self._loader(self.rows)
        opened.callback(self.loader.close)
        self.clock = self._clock(module)
        self.completions = Completions()
        opened.callback(self.completions.close)

    def _loader(self, rows: list[int]) -> Loader | Experience:
        size = self.settings.batch_size
        if is_on_policy(self.program.objective):
            return Experience(self.program, self.data.train, size, rows)
        return Loader(self.data.train, size, rows, self.step)

    def _steps_in_time(self) -> int:
        """`train.steps` of a run with `train.max_minutes`: those it has begun with, or as many as there is time for."""
        settings = self.settings
        if (steps := resume.begun_steps(self.workdir)) is not None:
            if steps != settings.steps:
                log.info("the run keeps its %d steps; --config.train.max_minutes=0 gives it train.steps", steps)
            return steps
        log.info("measuring how many steps train.max_minutes = %g leaves time for", settings.max_minutes)
        watch.at("the steps that are measured", limited=False)
        with contextlib.closing(Loader(self.data.train, settings.batch_size, self.rows)) as loader:
            self.train_step, compiling, seconds = budget.measured(self.program, loader, self.rows)
        passed = time.time() - self.started
        steps = budget.steps_in_time(settings.steps, settings.max_minutes, passed, compiling, seconds)
        log.info("%d of train.steps = %d steps, of %.2g s each", steps, settings.steps, seconds)
        return steps

    def _set_steps(self, steps: int) -> None:
        if steps == self.settings.steps:
            return
        self.settings = dataclasses.replace(self.settings, steps=steps)
        plain = self.config.to_dict()
        self.config = FrozenConfigDict(plain | {"train": plain["train"] | {"steps": steps}})
        self.program, self.train_step = with_steps(self.program, self.config), None

    def _start(self):
        restored = self.checkpointer.restore_latest(self.program.spec.shapes)
        if restored is None:
            if (self.workdir / "config.json").exists():
                log.info("%s holds a run that ended before its first checkpoint: it begins again", self.workdir)
            return self.program.init(self._initial_params())
        state, meta = restored
        resume.check_identity(self.workdir, meta["data"], self.meta["data"])
        resume.check_content(self.workdir, meta, self.meta)
        log.info("resuming %s at step %d of %d", self.workdir, int(state.step), self.settings.steps)
        return state

    def _initial_params(self):
        """What a new run begins with: `train.init_from`, or None."""
        if self.settings.init_from is None:
            return None
        from fmjax.interop.loading import check_initial_tokenizer, initial_params

        settings = self.settings
        check_initial_tokenizer(settings.init_from, self.data.tokenizer, settings.allow_other_tokenizer)
        spec = self.program.spec
        params = initial_params(
            self.settings.init_from, self.program.module, bare(spec.shapes.params), bare(spec.shardings.params)
        )  # fmt: skip
        log.info("beginning with the parameters of %s", self.settings.init_from)
        return params

    def _published(self) -> dict:
        """What came with the parameters that the run began with (`initial_published`); a run keeps it."""
        if (self.workdir / "config.json").exists():
            return load_workdir_config(self.workdir).get("published", {})
        if self.settings.init_from is None:
            return {}
        from fmjax.interop.loading import initial_published

        return initial_published(self.settings.init_from, self.data.tokenizer)

    def _done_before(self) -> tuple[int, int]:
        """The step the run starts at, if its evaluation was written before, and the same of its samples; else -1."""
        done = np.array([0, 0])
        if self.main:
            done = np.array([any(name.startswith("eval/") for name in self.writer.found), self.samples.found], int)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            done = multihost_utils.broadcast_one_to_all(done)
        return tuple(self.step if one else -1 for one in done)

    def _clock(self, module) -> Clock:
        batch = self.settings.batch_size
        shapes = {name: spec.shape[1:] for name, spec in self.program.batch_spec.items()}
        tokens = math.prod(shapes["tokens"]) if "tokens" in shapes else None
        flops = batch * module.flops_per_example(shapes) if hasattr(module, "flops_per_example") else None
        clock = Clock(self.program.mesh, batch, tokens and batch * tokens, flops)
        if clock.peak is None:
            log.info("the peak rate of %r is not known: MFU is not reported", clock.device.device_kind)
        elif flops is None:
            log.info("%s does not tell its FLOPs (flops_per_example): MFU is not reported", type(module).__name__)
        return clock

    def steps(self, stop: Stop) -> dict[str, float]:
        """Runs to the last step, or until `stop` is set; saves, evaluates and samples on the way and at the end."""
        last = self.settings.steps
        self.stop, self.agreed = stop, False  # what a signal sets here, and what several processes agree on
        try:
            if self.step >= last:
                log.info("%s is already at step %d of %d", self.workdir, self.step, last)
            else:
                self._log_start()
                with self._bar(last) as bar, logging_redirect_tqdm([log]):
                    self._steps(stop, last, bar)
            self._save()
            if self.step >= last:
                self._finish()
                return self.latest
        except _Stopped:
            self._save()
        self.checkpointer.finish()
        if self.step:
            log.info("stopped by a signal; saved at step %d of %d; the same command resumes", self.step, last)
        else:
            log.info("stopped by a signal before the first step; nothing was saved; the same command starts again")
        return self.latest | {"stopped": 1.0}

    def _steps(self, stop: Stop, last: int, bar) -> None:
        watch.at("the compilation of the train step", limited=False)
        train_step = self.train_step or self.lowered.compile()
        self.lowered = None  # the traced program is of no more use
        watch.barrier("the first step")
        pending = None
        first = self.first = self.step
        estimated, estimate_from = False, 0.0
        if first and self._due(first, last):
            self._pause(first, last)  # what the run was about to do when it ended
        self.clock.restart(self.loader.wait_seconds)
        stop.training = True
        while self.step < last and not self._must_stop(stop):
            self.profile.at(self.step + 1, self.state)
            if self.loader.due(self.step):
                if pending is not None:
                    self._record(*pending, bar)
                    pending = None
                self._collect()
            batch = to_global(next(self.loader), self.rows, self.program.batch_spec)
            watch.at(f"step {self.step + 1}")
            self.state, metrics = train_step(self.state, batch, self.program.key, *self.program.others)
            self.step += 1
            # The device computes this step while the host reads the one before (but for `fmjax.cpu.run_in_turn`).
            if pending is not None:
                self._record(*pending, bar)
            completed = self.completions.of(metrics) if self._logs(self.step) else None
            pending = (self.step, metrics, completed, self.loader.wait_seconds)
            if self.step == first + 1:
                jax.block_until_ready(metrics)
                seconds = time.time() - self.started
                log.info("first step %.1f s after the start", seconds)
                self._write(self.step, {"perf/seconds_to_first_step": seconds})
                self._record(*pending, bar)
                pending, estimate_from = None, time.perf_counter()
                self.clock.restart(self.loader.wait_seconds)
            elif not estimated and self.step > first + 3 and time.perf_counter() - estimate_from > 2.0:
                estimated = True
                rate = (time.perf_counter() - estimate_from) / (self.step - first - 2)  # the newest still runs
                log.info("about %s for the remaining %d steps", _duration(rate * (last - self.step)), last - self.step)
            if self._due(self.step, last):
                if pending is not None:
                    self._record(*pending, bar)
                    pending = None
                self._pause(self.step, last)
        if pending is not None:
            self._record(*pending, bar)
        self.profile.at(None, self.state)

    def _collect(self) -> None:
        """Rows from the model as it is now. A run that a signal ends in here makes them again when it resumes."""
        model = self._model(jax.block_until_ready(self.state.params))
        begin = time.perf_counter()
        self.loader.collect(self.step, model)
        self.clock.collected(time.perf_counter() - begin)
        self._leave_if_stopped()

    def _due(self, step: int, last: int) -> bool:
        settings = self.settings
        every = (settings.eval_every, settings.sample_every, settings.tasks_every, settings.checkpoint_every)
        return step < last and any(n and step % n == 0 for n in every)

    def _pause(self, step: int, last: int) -> None:
        """What happens between steps; its time does not count as training speed.

        A run that ends in here has saved the step, and does the rest when it resumes.
        """
        begin = time.perf_counter()
        if self.settings.checkpoint_every and step % self.settings.checkpoint_every == 0:
            self._save()
        if self.settings.eval_every and step % self.settings.eval_every == 0:
            self._evaluate()
        if self.settings.sample_every and step % self.settings.sample_every == 0:
            self._sample()
        if self.settings.tasks_every and step % self.settings.tasks_every == 0:
            self._run_tasks()
        self.clock.pause(time.perf_counter() - begin)

    def _logs(self, step: int) -> bool:
        return step % self.settings.log_every == 0 or step == self.settings.steps

    def _record(self, step: int, metrics, completed, input_wait: float, bar) -> None:
        """Reads the metrics of a step, waiting for it if it is still running; stops the run if they are not finite.

        The clock's interval ends where the step was complete (`completed`, a future), not where it is read, and counts
        the waiting for input up to its own batch.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.clock.steps += 1
        if not values.pop("finite"):
            self._not_finite(step, values)
        bar.update(1)
        if completed is None:
            return
        speed = self.clock.read(input_wait, completed.result())
        row = {f"train/{name}": value for name, value in values.items()}
        row |= speed if step != self.first + 1 else {}  # the first step of a process says nothing about speed
        self._write(step, row)
        self._show(bar, row)
        self.checkpointer.check()

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

    def _write(self, step: int, values: dict[str, float], again: bool = False) -> None:
        self.latest |= values
        if self.writer is not None:
            (self.writer.replace if again else self.writer.write)(step, values)

    def _save(self) -> None:
        if self.step != self.saved_step:
            self.checkpointer.save(self.state, self.meta)
            self.saved_step = self.step

    @property
    def eval_params(self):
        """The parameters that evaluation and samples use: the moving average where the run keeps one."""
        return self.program.average(self.state)

    def _model(self, params=None) -> Model:
        """The model as it is now, for samples and tasks: its average where one is kept, unless `params` are given."""
        return Model(
            self.program.module,
            self.eval_params if params is None else params,
            self.config.to_dict() | ({"published": self.published} if self.published else {}),
            self.data.tokenizer,
            self.step,
            str(self.workdir),
            placement=self.program.placement,
            codecs=dict(self.data.codecs),
            carry=self.state.carry,
        )

    def _evaluate(self) -> None:
        if not self.data.evaluation or self.evaluated_step == self.step:
            return
        settings, objective = self.settings, self.program.objective
        size, most, leave = settings.batch_size, settings.eval_batches, self._leave_if_stopped
        if not is_on_policy(objective):
            args = (self.program, self.eval_params, self.data.evaluation, size, most)
            results = evaluate_loss(*args, before_batch=leave, carry=self.state.carry)
        elif hasattr(objective, "assess"):
            results = evaluate_prompts(self.program, self._model(), self.data.evaluation, size, most, leave)
        else:
            return
        self.evaluated_step = self.step
        self._write(self.step, results)
        if self.main:
            if self.step < settings.steps:  # at the end it is drawn once, with or without an evaluation
                plot_loss(self.workdir)
            log.info("step %d: %s", self.step, "  ".join(f"{k} {v:.4g}" for k, v in results.items()))

    def _sample(self) -> None:
        if not self.can_sample or self.sampled_step == self.step:
            return
        self._leave_if_stopped()
        key = self.program.key_for(SAMPLES, self.step)
        watch.at(f"the samples of step {self.step}")
        with self.program.inference():
            model = self._model()
            values = draw(self.program.objective, model, self.data, key)
        self.sampled_step = self.step
        if self.main and values:
            self.last_samples = [value for value in values if isinstance(value, str)]
            self.samples.write(self.step, values, model.codec, self.writer)

    def _finish(self) -> None:
        self._evaluate()
        self._sample()
        if self.main:
            plot_loss(self.workdir)
        self.checkpointer.finish()
        self._show_results()
        self._run_tasks()

    def _show_results(self) -> None:
        """On the terminal: the last samples, and where everything is."""
        if self.main:
            for text in self.last_samples:
                log.info("%s\n%s", "-" * 40, text)
            names = ("loss.png", "samples.txt", "samples", "metrics.jsonl", "results.json", "checkpoints")
            found = ", ".join(name for name in names if (self.workdir / name).exists())
            log.info("%s\n%s: %s", "-" * 40, self.workdir, found)

    def _run_tasks(self) -> None:
        """The evaluation tasks the config asks for; at the end their lines come last on the terminal."""
        settings = self.settings
        if not settings.final_tasks:
            return
        self._leave_if_stopped()
        watch.at(f"the tasks of step {self.step}", limited=False)
        results = final_tasks.run(
            settings.final_tasks, self._model(), self.data, settings.final_tasks_limit, self.progress, self.workdir
        )
        for name, result in results.items():
            self._write(self.step, {f"{name}/{k}": v for k, v in result.metrics.items() if v is not None}, again=True)
            log.info("%s", result.headline)

    def _must_stop(self, stop: Stop) -> bool:
        if jax.process_count() == 1:
            return stop.is_set() and not self._inside_rollout
        from jax.experimental import multihost_utils

        # Asked at every step: the processes agree on the one after the newest, wherever in a rollout it lies.
        self.agreed = multihost_utils.reached_preemption_sync_point(self.step) or self.agreed
        return self.agreed and not self._inside_rollout

    def _leave_if_stopped(self) -> None:
        # With several processes all must leave at the same place, which only the training steps agree on.
        if jax.process_count() == 1 and self.stop.is_set() and not self._inside_rollout:
            raise _Stopped

    @property
    def _inside_rollout(self) -> bool:
        """Whether a run that is saved now could not be resumed: the next rows came from parameters that are gone."""
        return self.step % getattr(self.program.objective, "rollout_steps", 1) != 0

    def _log_start(self) -> None:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.program.spec.shapes.params))
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.program.mesh.shape.items() if size > 1) or "1 device"
        log.info(
            "%s with %s parameters on %s (%s); compiling the train step",
            type(self.program.module).__name__, f"{count:,}", mesh, self.clock.device.device_kind,
        )  # fmt: skip
        schedule = getattr(build(self.config["optimizer"], OPTIMIZERS), "schedule", None)
        if (note := shortened(schedule, self.settings.steps)) is not None:
            log.info(note)

    def _bar(self, last: int):
        # A terminal is redrawn often; a log file gets a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        return tqdm(
            total=last, initial=self.step, unit="step", disable=not self.progress, dynamic_ncols=True,
            mininterval=interval, maxinterval=interval,
        )  # fmt: skip

    def _show(self, bar, row: dict[str, float]) -> None:
        speed = row.get("perf/tokens_per_second")
        bar.set_postfix_str(
            f"loss {row['train/loss']:.3f}" + (f", {speed:,.0f} tokens/s" if speed else ""), refresh=False
        )

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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
