"""What can be known of a run before it begins: whether data, module, objective and outputs fit each other."""

import logging

from fmjax.assemble import check_codecs
from fmjax.errors import ConfigError
from fmjax.objectives.base import is_on_policy
from fmjax.training import final_tasks
from fmjax.training.experience import check_steps
from fmjax.training.settings import TrainConfig

log = logging.getLogger("fmjax")


def check_fit(data, module, objective=None) -> None:
    """Raises ConfigError when the data and the module do not fit each other.

    A bare denoiser of latents reads no images of the data: the objective compares it with their first stage.
    """
    missing = [k for k in data.model_fields if getattr(module, k, 0) is None]
    if missing:
        raise ConfigError(f"model.{missing[0]} is not set and the data does not tell it")
    if not getattr(objective, "of_latents", False) or hasattr(module, "denoiser"):
        data.check(module)


def say_context(config, module) -> None:
    """Says in a line that the model reads more than a row of training has."""
    rows, reads = config["data"].get("sequence_length"), getattr(module, "max_length", None)
    if rows is None or reads is None or rows >= reads:
        return
    hint = f"no row trains the rest: model.max_length={rows} leaves it out"
    if config["train"]["init_from"] is not None:
        hint = "as before: train.init_from has learnt it"
    log.info(
        "rows have %d tokens; scoring, generation and export take up to model.max_length = %d (%s)", rows, reads, hint
    )


def check_outputs(settings: TrainConfig, objective, module, data, config: dict = {}) -> bool:
    """Whether the run will sample. Raises InputError for what is asked for, on the way or at the end, and cannot be."""
    if settings.eval_every > 0 and not data.evaluation:
        raise ConfigError(
            f"train.eval_every = {settings.eval_every}, but these data have nothing to evaluate on; set it to 0, or "
            "set data.eval_source or a larger data.heldout_fraction where the data are text"
        )
    check_codecs(data.codecs, module, objective)
    if hasattr(objective, "check"):
        objective.check(module, data)
    if is_on_policy(objective):
        check_steps(settings, objective)
        if settings.max_minutes:
            raise ConfigError(
                f"train.max_minutes = {settings.max_minutes:g}: a step says nothing of the time in which objective "
                f"{type(objective).__name__} makes the rows to train on; set it to 0 and train.steps as you want it"
            )
        if settings.eval_every > 0 and not hasattr(objective, "assess"):
            raise ConfigError(
                f"train.eval_every = {settings.eval_every}, but objective {type(objective).__name__} trains on what it "
                "collects and has no method `assess` for held-out prompts; set it to 0"
            )
    can_sample = hasattr(objective, "sample") and getattr(objective, "can_sample", lambda *_: True)(module, data)
    if settings.sample_every > 0 and not can_sample:
        raise ConfigError(
            f"train.sample_every = {settings.sample_every}, but objective {type(objective).__name__} cannot sample "
            "with this model and these data; set it to 0"
        )
    makes = getattr(objective, "makes", None)
    keeps = getattr(objective, "keeps", False)  # latents, which may lie there without what images of them look like
    if makes not in (None, *data.codecs) and (can_sample or hasattr(objective, "generator")) and not keeps:
        raise ConfigError(
            f"objective {type(objective).__name__} makes values of modality {makes!r}, and these data have no codec "
            f"for it to write them with (they have {', '.join(data.codecs) or 'none'}): `codecs` of what `open` returns"
        )
    final_tasks.check(settings.final_tasks, data, module, config)
    return can_sample
