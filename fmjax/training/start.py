"""How a run begins: what it needs is opened and checked before anything is written, then its first state is made."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from fmjax.assemble import build_module, check_foreseen, completed, open_data
from fmjax.checkpoint_files import has_checkpoint
from fmjax.config import build, load_workdir_config, save_config
from fmjax.data.codecs.base import fingerprint, save_codecs
from fmjax.data.loader import Loader
from fmjax.inference.model import Model
from fmjax.interop.weights import flatten
from fmjax.layers.weights import bare
from fmjax.load import load, open_other
from fmjax.models.state import STATE_KEY, kept_state
from fmjax.objectives import OBJECTIVES
from fmjax.objectives.base import OtherModel
from fmjax.parallel import watch
from fmjax.parallel.hosts import check_same, connect
from fmjax.parallel.sharding import local_rows
from fmjax.training import OPTIMIZERS, budget, resume
from fmjax.training.checkpoint import Checkpointer
from fmjax.training.checks import check_fit, check_outputs, say_context
from fmjax.training.other_models import check_prepared, file_hashes, fingerprints, model_paths
from fmjax.training.program import Program, make_program, with_steps
from fmjax.training.schedule import shortened
from fmjax.training.settings import TrainConfig
from fmjax.training.state import TrainState

log = logging.getLogger("fmjax")


@dataclasses.dataclass
class Setup:
    """What a run is made of, but for its state.

    Attributes:
      config: complete, with what the data filled in.
      settings: its `train`, whose `steps` are those that the run has time for.
      rows: those of the global batch that this process holds.
      published: what came with the parameters that the run began with (`fmjax.interop.initial.initial_published`).
      can_sample: whether objective, model and data let the run draw samples.
      progress: whether this process shows progress bars.
      started: `time.time()` of the command's start.
      files: hashes of the files of other models, where several processes read them (`file_hashes`).
      traced: the train step, lowered, or compiled where its time was measured; `compiled` takes it.
    """

    config: FrozenConfigDict
    settings: TrainConfig
    workdir: pathlib.Path
    data: Any
    program: Program
    rows: list[int]
    published: dict
    can_sample: bool
    progress: bool
    started: float
    files: dict[str, str]
    traced: jax.stages.Lowered | jax.stages.Compiled | None = None

    def compiled(self) -> jax.stages.Compiled:
        """The train step, compiled; what it was traced to is let go."""
        step, self.traced = self.traced, None
        return step.compile() if isinstance(step, jax.stages.Lowered) else step

    def identity(self) -> dict:
        """What a checkpoint says of data, other models in the step, codecs and files that the objective reads."""
        meta = {"data": self.data.identity}
        if self.program.models:
            meta["model"] = fingerprints(self.program.models, self.program.placement)
        if self.data.codecs:
            meta["codec"] = {name: fingerprint(codec) for name, codec in self.data.codecs.items()}
        if files := getattr(self.program.objective, "contents", dict)():
            meta["file"] = files
        check_same(meta | {"model files": self.files})
        return meta

    def model(self, state: TrainState, params=None) -> Model:
        """The model at a state, for samples and tasks: its average where one is kept, unless `params` are given."""
        return Model(
            self.program.module,
            self.program.average(state) if params is None else params,
            self.config.to_dict() | ({"published": self.published} if self.published else {}),
            self.data.tokenizer,
            int(state.step),
            str(self.workdir),
            placement=self.program.placement,
            codecs=dict(self.data.codecs),
            carry=state.carry,
            open_other=functools.partial(self._other, int(state.step)),
            open_path=functools.partial(load, mesh=self.program.placement),
        )

    def _other(self, step: int, name: str) -> OtherModel:
        """A model that the objective names: one in the step, or one that values are made with alone."""
        models = self.program.models or {}
        if name in models:
            return models[name]
        return open_other(self.workdir, step, self.config.to_dict(), "float32", self.program.placement, name)

    def save(self) -> None:
        """Writes to the workdir what loading needs besides a checkpoint; process 0 does."""
        if jax.process_index() == 0:
            save_config(self.config, self.workdir / "config.json", self.published)
            if self.data.tokenizer is not None:
                self.data.tokenizer.save(self.workdir)
            save_codecs(self.data.codecs, self.workdir)

    def say(self) -> None:
        """In a line, what trains on what; in another, where `train.steps` leave the schedule too short."""
        program = self.program
        count = sum(leaf.size for leaf in jax.tree.leaves(program.spec.shapes.params))
        mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items() if size > 1) or "1 device"
        kind = jax.local_devices()[0].device_kind
        name = type(program.module).__name__
        log.info("%s with %s parameters on %s (%s); compiling the train step", name, f"{count:,}", mesh, kind)
        schedule = getattr(build(self.config["optimizer"], OPTIMIZERS), "schedule", None)
        if (note := shortened(schedule, self.settings.steps)) is not None:
            log.info(note)


def prepare(config, workdir: pathlib.Path, cache_dir: pathlib.Path, progress: bool, started: float) -> Setup:
    """Opens and checks what the run of `config` in `workdir` needs, and traces its step; nothing is written there yet.

    Arguments, and what it raises: see `fmjax.training.loop.train`.
    """
    settings, progress = TrainConfig(**config["train"]), progress and jax.process_index() == 0
    paths = model_paths(config, workdir)  # looked for before anything slow
    check_foreseen(config)
    data = open_data(config, cache_dir, workdir, progress)
    module = build_module(config, data.model_fields)
    check_fit(data, module, build(config["objective"], OBJECTIVES))
    check_prepared(config, data.codecs, data)
    say_context(config, module)
    config = completed(config, module)
    resume.check_config(workdir, config)
    published = _published(workdir, settings, data)
    program = make_program(config, module, data.train[0])
    connect(program.mesh)
    can_sample = check_outputs(settings, program.objective, module, data, config.to_dict())
    rows = local_rows(settings.batch_size, program.batch_sharding)
    files = file_hashes(paths, cache_dir)
    setup = Setup(config, settings, workdir, data, program, rows, published, can_sample, progress, started, files)
    if settings.max_minutes:
        _set_steps(setup, _steps_in_time(setup))
    if setup.traced is None:
        setup.traced = setup.program.lower_train_step()  # what the objective returns is checked on the way
    return setup


def _steps_in_time(setup: Setup) -> int:
    """`train.steps` of a run with `train.max_minutes`: those it has begun with, or as many as there is time for."""
    settings = setup.settings
    if (steps := resume.begun_steps(setup.workdir)) is not None:
        if steps != settings.steps:
            log.info("the run keeps its %d steps; --config.train.max_minutes=0 gives it train.steps", steps)
        return steps
    log.info("measuring how many steps train.max_minutes = %g leaves time for", settings.max_minutes)
    watch.at("the steps that are measured", limited=False)
    with contextlib.closing(Loader(setup.data.train, settings.batch_size, setup.rows)) as loader:
        setup.traced, compiling, seconds = budget.measured(setup.program, loader, setup.rows)
    passed = time.time() - setup.started
    steps = budget.steps_in_time(settings.steps, settings.max_minutes, passed, compiling, seconds)
    log.info("%d of train.steps = %d steps, of %.2g s each", steps, settings.steps, seconds)
    return steps


def _set_steps(setup: Setup, steps: int) -> None:
    if steps == setup.settings.steps:
        return
    plain = setup.config.to_dict()
    setup.settings = dataclasses.replace(setup.settings, steps=steps)
    setup.config = FrozenConfigDict(plain | {"train": plain["train"] | {"steps": steps}})
    setup.program, setup.traced = with_steps(setup.program, setup.config), None


def first_state(setup: Setup, checkpointer: Checkpointer, identity: dict, begun) -> TrainState:
    """The state of the newest checkpoint, or a fresh one of what a run begins with (`beginning`).

    Raises InputError where another run was saved there.
    """
    restored = checkpointer.restore_latest(setup.program.spec.shapes)
    if restored is None:
        if (setup.workdir / "config.json").exists():
            log.info("%s holds a run that ended before its first checkpoint: it begins again", setup.workdir)
        params, state = begun
        fresh = setup.program.init(params)
        return dataclasses.replace(fresh, carry={**fresh.carry, STATE_KEY: state}) if state else fresh
    state, saved = restored
    resume.check_identity(setup.workdir, saved["data"], identity["data"])
    resume.check_content(setup.workdir, saved, identity)
    log.info("resuming %s at step %d of %d", setup.workdir, int(state.step), setup.settings.steps)
    return state


def beginning(setup: Setup):
    """(parameters, module's state) that a new run begins with: those of `train.init_from`; (None, {}) without it and
    for a run that has begun."""
    settings, spec = setup.settings, setup.program.spec
    if has_checkpoint(setup.workdir):
        return None, {}
    check_begun = getattr(setup.program.weights, "check_begun", lambda params: None)
    if settings.init_from is None:
        check_begun(None)
        return None, {}
    from fmjax.interop.initial import check_initial_tokenizer, initial_params, initial_state

    for path in (settings.init_from, *settings.init_parts):
        check_initial_tokenizer(path, setup.data.tokenizer, settings.allow_other_tokenizer)
    program, parts = setup.program, settings.init_parts
    options = dict(parts=parts, layers=settings.init_layers, stored=_stored(program))
    params = initial_params(settings.init_from, program.module, *program.plain(), **options)
    check_begun(params)
    log.info("beginning with the parameters of %s", " and ".join((settings.init_from, *parts)))
    places = kept_state(spec.shardings.carry)
    return params, initial_state(settings.init_from, places) if places else {}


def _stored(program: Program) -> dict[str, Callable[[jax.Array], Any]]:
    """By path, what makes of a parameter that is read from a file what the run keeps of it, in its shards
    (`fmjax.adapt.base.Weights`)."""
    if not hasattr(program.weights, "stored"):
        return {}
    places, made = flatten(bare(program.spec.shardings.params)), program.weights.stored(program.plain()[0])
    return {path: jax.jit(make, out_shardings=places[path]) for path, make in made.items()}


def _published(workdir: pathlib.Path, settings: TrainConfig, data) -> dict:
    """What came with the parameters that the run began with; a run keeps it."""
    if (workdir / "config.json").exists():
        return load_workdir_config(workdir).get("published", {})
    from fmjax.interop.initial import initial_published, with_stop_ids

    found = {} if settings.init_from is None else initial_published(settings.init_from, data.tokenizer)
    return with_stop_ids(found, data.stop_ids, data.tokenizer)
