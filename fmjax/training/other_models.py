"""Other models in the step: those an objective names by path, on the run's mesh; never trained, never saved with it.
And where they lie, with the one that a run begins with."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fmjax.checkpoint_files import complete_steps, has_checkpoint
from fmjax.config import build
from fmjax.data.prepared import content_hash, fingerprint
from fmjax.errors import ConfigError, InputError
from fmjax.inference.fingerprint import content_fingerprint
from fmjax.load import check_cut_alike, described, find, load, load_shapes, trained_with
from fmjax.models.state import kept_state, own_carry
from fmjax.objectives import OBJECTIVES
from fmjax.objectives.base import OtherModel
from fmjax.parallel.placement import Placement


def model_paths(config, workdir: pathlib.Path) -> dict[str, str]:
    """Where the models lie that a run reads, by what the config calls them: those of its objective, and what it begins
    with unless it has begun.

    Raises InputError where there is no model. A hub id is downloaded, unless it is there.
    """
    objective, begins = build(config["objective"], OBJECTIVES), config["train"]["init_from"]
    paths = {f"the objective's model {k!r}": v for k, v in getattr(objective, "models", dict)().items()}
    if begins is not None and not has_checkpoint(workdir):
        paths["train.init_from"] = begins
        paths |= {f"train.init_parts[{i}]": path for i, path in enumerate(config["train"]["init_parts"])}
    for what, path in paths.items():
        try:
            find(path)
        except InputError as error:
            raise type(error)(f"{what}: {error}") from None
    return paths


def file_hashes(paths: dict[str, str], cache_dir: pathlib.Path) -> dict[str, str]:
    """Of each path the hash of the files with its parameters, where several processes each read them: of arrays that
    are split over processes none has the whole to compare. Without several, none."""
    return {what: _file_hash(path, cache_dir) for what, path in paths.items()} if jax.process_count() > 1 else {}


def _file_hash(path: str, cache_dir: pathlib.Path) -> str:
    place, step, _ = find(path)
    if place.is_dir():
        steps = complete_steps(place / "checkpoints") if step is None else [step]
        saved = (place / "checkpoints" / str(steps[-1])).rglob("*") if steps else place.rglob("*.safetensors")
        files = sorted(file for file in (place / "config.json", *saved) if file.is_file())
    else:
        files = [place]
    return fingerprint(*((file.name, content_hash(file, cache_dir)) for file in files))


def open_models(objective, module, placement: Placement, abstract: bool = False) -> dict[str, OtherModel] | None:
    """The models that `objective.models()` names, split over the mesh as the run's parameters are; None without any.

    Args:
      module: the one that is trained, which they have to fit.
      abstract: only the shapes of their parameters; of files no more is read than tells them.

    Raises InputError, naming the model, where one cannot be loaded or does not fit.
    """
    paths = getattr(objective, "models", dict)()
    if not paths:
        return None
    found = {}
    for name, path in paths.items():
        try:
            found[name] = OtherModel(*(load_shapes if abstract else _load)(path, placement))
        except InputError as error:
            raise type(error)(f"the objective's model {name!r}: {error}") from None
    if hasattr(objective, "check_objectives"):
        objective.check_objectives({name: trained_with(path) for name, path in paths.items()})
    if hasattr(objective, "check_models"):
        objective.check_models(module, found)
    return found


def check_prepared(config, codecs: Mapping[str, Any], data=None) -> None:
    """Raises ConfigError where a model of the objective was trained on values normalised otherwise than these codecs
    do, or, of those among its `CUT_ALIKE`, cut otherwise than `data` are: it is given what they make, as it is."""
    objective = build(config["objective"], OBJECTIVES)
    for name, path in getattr(objective, "models", dict)().items():
        if data is not None and name in getattr(objective, "CUT_ALIKE", ()):
            check_cut_alike(f"the objective's model {name!r}", path, data)
        check_normalised(name, path, codecs)


def check_normalised(name: str, path: str, codecs: Mapping[str, Any]) -> None:
    """Raises ConfigError where the objective's model `name` was trained on values normalised otherwise than these
    codecs do."""
    for modality, theirs in described(path)[1].items():
        for field in ("mean", "std"):
            ours, known = (getattr(codec, field, None) for codec in (codecs.get(modality), theirs))
            if ours is not None and known is not None and not _same(ours, known):
                raise ConfigError(
                    f"the objective's model {name!r}, {path!r}, reads values of modality {modality!r} with {field} "
                    f"= {known}, and those of these data have {field} = {ours}; give the data the model's (such as "
                    f"data.{field}), or name a model that was trained on values as they are"
                )


def _same(ours, theirs) -> bool:
    """Whether numbers are equal; one stands for all channels."""
    sizes = np.size(ours), np.size(theirs)
    return (1 in sizes or sizes[0] == sizes[1]) and bool(np.allclose(ours, theirs))


def _load(path: str, placement: Placement):
    model = load(path, mesh=placement)
    return model.module, model.params, kept_state(model.carry), own_carry(model.carry)


def fingerprints(models: dict[str, OtherModel] | None, placement: Placement) -> dict[str, str]:
    """What each model is, by its module and the content of its parameters."""
    found = {}
    for name, model in (models or {}).items():
        with placement.inference():
            found[name] = content_fingerprint(model)
    return found
