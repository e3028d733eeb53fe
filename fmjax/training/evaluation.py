"""The evaluation loss: sums over whole evaluation sets, every example counted once on any mesh."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.base import stacked
from fmjax.data.loader import Loader
from fmjax.errors import ConfigError
from fmjax.parallel import watch
from fmjax.parallel.sharding import local_rows, to_global
from fmjax.training.gradients import metric_terms
from fmjax.training.program import EVALUATION


class PaddedRows:
    """Rows of a finite set, and after its end rows of zeros, whose `loss_weights` of zero leave the sums alone."""

    def __init__(self, rows):
        self.rows = rows
        self.padding = {name: np.zeros_like(array) for name, array in rows[0].items()}

    def __getitem__(self, index: int):
        return self.rows[index] if index < len(self.rows) else self.padding


def evaluate_loss(
    program, params, sets: dict, batch_size: int, max_batches: int = 0,
    before_batch: Callable[[], None] = lambda: None, carry=None,
) -> dict[str, float]:
    """Means of the objective's sums over the evaluation sets.

    Args:
      sets: name to finite random-access rows.
      max_batches: batches read from each set; 0 = all.
      before_batch: called before each; what it raises ends the evaluation.
      carry: the objective's, which is read.

    Returns:
      {"eval/loss": ...} and so on over all sets together, and {"eval/NAME/loss": ...} each where there are several.
    """
    rows = local_rows(batch_size, program.batch_sharding)
    totals: dict[str, dict] = {}
    for name, examples in sets.items():
        count = -(-len(examples) // batch_size)
        if len(examples) % batch_size and "loss_weights" not in examples[0]:
            raise ConfigError(
                f"the evaluation set {name!r} has {len(examples)} examples, not a multiple of train.batch_size = "
                f"{batch_size}, and its examples have no 'loss_weights' that would mark padding"
            )
        loader = Loader(PaddedRows(examples), batch_size, rows, 0)
        total = None
        with contextlib.closing(loader), jax.set_mesh(program.mesh):
            for number in range(min(count, max_batches) if max_batches else count):
                before_batch()
                batch = to_global(next(loader), rows, program.batch_spec)
                watch.at(f"batch {number + 1} of the evaluation set {name!r}")
                sums = program.eval_step(params, batch, program.key_for(EVALUATION, number), carry, program.models)
                total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        totals[name] = jax.device_get(total)
    return _results(program.objective, totals)


def evaluate_prompts(
    program, model, sets: dict, batch_size: int, max_batches: int = 0, before_batch: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Means of what an on-policy objective's `assess` sums over evaluation sets of prompts, `batch_size` at a time.

    model: as it is now. Other arguments and what is returned: as of `evaluate_loss`.
    """
    totals: dict[str, dict] = {}
    for name, prompts in sets.items():
        count, total = -(-len(prompts) // batch_size), None
        for number in range(min(count, max_batches) if max_batches else count):
            before_batch()
            rows = [prompts[i] for i in range(number * batch_size, min((number + 1) * batch_size, len(prompts)))]
            watch.at(f"batch {number + 1} of the evaluation set {name!r}", limited=False)
            with program.inference():
                sums = program.objective.assess(model, stacked(rows), program.key_for(EVALUATION, number))
            total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
        totals[name] = total
    return _results(program.objective, totals)


def _results(objective, totals: dict[str, dict]) -> dict[str, float]:
    """The metrics of all sets together, and where there are several those of each."""
    results = _named("eval", objective, jax.tree.map(lambda *parts: sum(parts), *totals.values()))
    if len(totals) > 1:
        for name, sums in totals.items():
            results |= _named(f"eval/{name}", objective, sums)
    return results


def _named(prefix: str, objective, sums) -> dict[str, float]:
    if hasattr(objective, "reduce"):
        return {f"{prefix}/{name}": float(value) for name, value in objective.reduce(sums).items()}
    mean = lambda total, weight: float(total) / float(weight) if weight else float("nan")
    return {f"{prefix}/{name}": sum(mean(*term) for term in metric_terms(metric)) for name, metric in sums.items()}
