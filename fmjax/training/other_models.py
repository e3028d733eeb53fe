"""Other models in the step: those an objective names by path, on the run's mesh; never trained, never saved with it."""

import hashlib

from fmjax.code_digest import describe
from fmjax.errors import InputError
from fmjax.inference.fingerprint import array_fingerprints
from fmjax.load import load, load_shapes
from fmjax.objectives.base import OtherModel
from fmjax.parallel.placement import Placement


def open_models(objective, module, placement: Placement, abstract: bool = False) -> dict[str, OtherModel] | None:
    """The models that `objective.models()` names, split over the mesh as the run's parameters are; None without any.

    Args:
      module: the one that is trained, which they have to fit.
      abstract: only the shapes of their parameters; of files no more is read than tells them.

    Raises InputError, naming the model, where one cannot be loaded or does not fit.
    """
    if not hasattr(objective, "models"):
        return None
    found = {}
    for name, path in objective.models().items():
        try:
            found[name] = OtherModel(*(load_shapes if abstract else _load)(path, placement))
        except InputError as error:
            raise type(error)(f"the objective's model {name!r}: {error}") from None
    if hasattr(objective, "check_models"):
        objective.check_models(module, found)
    return found


def _load(path: str, placement: Placement):
    model = load(path, mesh=placement)
    return model.module, model.params


def fingerprints(models: dict[str, OtherModel] | None, placement: Placement) -> dict[str, str]:
    """What each model is, by its module and the content of its parameters."""
    found = {}
    for name, model in (models or {}).items():
        with placement.inference():
            parts = [describe(model.module), *array_fingerprints(model.params)]
        found[name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return found
