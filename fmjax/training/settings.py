"""The keys under `train` of every training config."""

import dataclasses
import math
import re
from typing import Literal

from fmjax.errors import ConfigError
from fmjax.power_average import WIDEST, exponent


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, what to log and keep. Counts are in steps unless they say otherwise; 0 means never."""

    steps: int  # optimizer updates in all; a later run may extend it
    batch_size: int  # examples of one update, over all devices
    # from the command's start to the last step, without evaluation, samples and saves: a run whose `steps` take longer
    # is given fewer before its first one, and keeps them; 0 = no limit
    max_minutes: float = 0.0
    init_from: str | None = None  # a run, saved or published model, or hub id, whose parameters a new run begins with
    init_parts: tuple[str, ...] = ()  # with init_from: further ones, for other parts of a model that is made of several
    # with init_from: which of its layers a model of fewer begins with, a number from 0 for each, or "every" or "spread"
    # as in `fmjax.layers.layer_map`; "" = it has as many
    init_layers: tuple[int, ...] | str = ""
    allow_other_tokenizer: bool = False  # with init_from: data.tokenizer may be another than the parameters' own
    trainable: tuple[str, ...] = ()  # regular expressions: parameters whose names have one train; empty: all do
    frozen_layers: int = 0  # of each stack, so many layers from the input's side stay as they are
    accumulate_steps: int = 1  # a batch is computed in this many parts, one after another
    log_every: int = 10  # steps of a row of metrics.jsonl and a line of the terminal
    # evaluation, besides the end of the run, where there is evaluation data; 0 = at the end alone, -1 = never
    eval_every: int = 0
    eval_batches: int = 0  # batches of batch_size per evaluation; 0 = the whole evaluation set
    # samples, besides the end of the run, where the objective can sample; 0 = at the end alone, -1 = never
    sample_every: int = 0
    checkpoint_every: int = 1000  # checkpoints, besides the end of the run
    keep_last: int = 2  # newest checkpoints kept
    keep_every: int = 0  # checkpoints at multiples of this are kept for ever
    ema_decay: float = 0.0  # exponential moving average of the parameters, reached by a ramp; 0 = none
    # in place of ema_decay, the widths (sigma_rel) of two averages by power functions, such as (0.05, 0.1): of those in
    # the checkpoints that are kept (keep_every) one of any width is made later; evaluation uses the first; () = none
    ema_sigma_rel: tuple[float, ...] = ()
    nonfinite: Literal["stop", "skip"] = "stop"  # where loss, gradient or update is not finite: end, or leave it out
    final_tasks: tuple[str, ...] = ()  # evaluation tasks run at the end
    final_tasks_limit: int = 0  # documents per task; 0 = all
    tasks_every: int = 0  # final_tasks run every so many steps, besides the end
    profile_steps: tuple[int, ...] = ()  # (first, last): a profiler trace of these steps goes to WORKDIR/profile
    tensorboard: bool = True  # whether TensorBoard events are written

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate_steps", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} = {getattr(self, name)} must be at least 1")
        counts = ("eval_batches", "checkpoint_every", "keep_every", "final_tasks_limit", "tasks_every", "frozen_layers")
        for name in counts:
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} = {getattr(self, name)} must be 0 or more")
        for name in ("eval_every", "sample_every"):
            if getattr(self, name) < -1:
                raise ConfigError(f"train.{name} = {getattr(self, name)} must be a number of steps, 0 or -1")
        if not 0.0 <= self.max_minutes < math.inf:
            raise ConfigError(f"train.max_minutes = {self.max_minutes} must be 0 or more")
        for pattern in self.trainable:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"train.trainable: {pattern!r} is not a regular expression ({error})") from None
        if self.batch_size % self.accumulate_steps:
            raise ConfigError(
                f"train.batch_size = {self.batch_size} is not divisible by "
                f"train.accumulate_steps = {self.accumulate_steps}"
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"train.ema_decay = {self.ema_decay} must be in [0, 1)")
        self._check_widths()
        if self.frozen_layers and (self.ema_decay or self.ema_sigma_rel):
            raise ConfigError("train.frozen_layers does not go with a moving average of parameters; set one to 0")
        profile = self.profile_steps
        if profile and (len(profile) != 2 or not 1 <= profile[0] <= profile[1]):
            raise ConfigError(f"train.profile_steps = {self.profile_steps} must be (first, last), such as (10, 12)")
        if self.allow_other_tokenizer and self.init_from is None:
            raise ConfigError("train.allow_other_tokenizer = True is not read: train.init_from names no parameters")
        if self.init_parts and self.init_from is None:
            raise ConfigError(f"train.init_parts = {self.init_parts} is not read: train.init_from names no parameters")
        if self.init_layers and self.init_from is None:
            raise ConfigError(
                f"train.init_layers = {self.init_layers!r} is not read: train.init_from names no parameters"
            )
        for name in ("final_tasks_limit", "tasks_every"):
            if getattr(self, name) and not self.final_tasks:
                raise ConfigError(
                    f"train.{name} = {getattr(self, name)} is not read: train.final_tasks is empty; name tasks there"
                )

    def _check_widths(self) -> None:
        widths = self.ema_sigma_rel
        if not widths:
            return
        if self.ema_decay:
            raise ConfigError(
                f"train.ema_decay = {self.ema_decay} and train.ema_sigma_rel = {widths}: give one of them"
            )
        if len(widths) != 2 or not 0 < widths[0] < widths[1] <= WIDEST:
            raise ConfigError(
                f"train.ema_sigma_rel = {widths} must be two widths above 0 and at most {WIDEST}, the smaller first, "
                "such as (0.05, 0.1)"
            )

    @property
    def ema_exponents(self) -> tuple[float, ...]:
        """Of the averages by power functions."""
        return tuple(exponent(width) for width in self.ema_sigma_rel)
