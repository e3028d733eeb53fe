"""Any objective for a module with state (`fmjax.models.state`): the state joins what the objective carries.

The rule: an update starts from one state. Every call of the module with `train=True` sees that state and makes a new
one; after the step the state is the mean of these, over the parts of the batch (`train.accumulate_steps`) and over the
calls within a part. So for a running average, which is linear in what it averages, the order of parts does not matter.
Devices make no difference: a part is a global array, and what is computed over its rows is computed over all of them.
What a part's rows tell each other, as in batch normalisation, they tell within the part: a run is not resumed with
another number of parts (`ROWS_APART`). Evaluation, samples and the loaded model read the state and do not change it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace

from fmjax.errors import ConfigError
from fmjax.models.state import STATE_KEY, initial_state, state_collections
from fmjax.objectives.base import Proposal, call_objective, has_carry


def with_state(objective, module):
    """The objective, carrying the module's state where it has some."""
    names = state_collections(module)
    return Stateful(objective, names) if names else objective


@dataclasses.dataclass(frozen=True)
class Stateful:
    """An objective that carries a module's state beside what it carries itself; what else it has is the inner one's.

    The carry is that of the inner objective, a dict, with `STATE_KEY` in it.

    Attributes:
      inner: the objective.
      names: of the module's collections.
    """

    ROWS_APART: ClassVar[bool] = False

    inner: Any
    names: tuple[str, ...]

    def __getattr__(self, name: str):
        if name == "inner":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def initial(self, module, params, key) -> dict[str, Any]:
        """The inner objective's carry, and the module's state.

        Raises ConfigError for a carry that is no dict, or has an entry of that name.
        """
        own = self.inner.initial(module, params, key) if has_carry(self.inner) else {}
        if not isinstance(own, Mapping) or STATE_KEY in own:
            found = f"has {STATE_KEY!r}" if isinstance(own, Mapping) else f"is a {type(own).__name__}"
            raise ConfigError(
                f"objective {type(self.inner).__name__}: its carry {found}; beside the state of "
                f"{type(module).__name__} ({', '.join(self.names)}) it has to be a dict without that name"
            )
        return {**own, STATE_KEY: initial_state(module, key)}

    def __call__(self, apply_fn: Callable, params, batch, key, train: bool, *, carry, models=None):
        """(the inner objective's sums, its proposal and the sum of the module's new states)."""
        state, made, trace = carry[STATE_KEY], [], current_trace()

        def apply(variables, *args, **options):
            variables = {**state, **variables}
            if not (train and options.get("train")):
                return apply_fn(variables, *args, **options)
            if current_trace() != trace:
                raise ConfigError(
                    f"objective {type(self.inner).__name__} calls the module inside a jax.vmap, lax.scan or the like, "
                    f"out of which its new {', '.join(self.names)} do not get; call it with the whole batch"
                )
            asked = tuple(options.pop("mutable", ()))  # collections that the inner objective reads, such as `reads`
            out, new = apply_fn(variables, *args, mutable=(*self.names, *asked), **options)
            made.append({name: new.get(name, state[name]) for name in self.names})
            return (out, {name: new[name] for name in asked if name in new}) if asked else out

        sums, proposal = call_objective(self.inner, apply, params, batch, key, train, self._own(carry), models)
        if train and not made:
            raise ConfigError(
                f"objective {type(self.inner).__name__} does not call the module with train=True, so its "
                f"{', '.join(self.names)} would stay as they are"
            )
        total = jax.tree.map(lambda *states: sum(states), *made) if made else None
        seen = {"own": proposal.sums, "state": total, "calls": jnp.float32(len(made))}
        return sums, Proposal(jax.lax.stop_gradient(seen), proposal.rows)

    def after(self, carry, proposal: Proposal, params) -> dict[str, Any]:
        """The inner objective's next carry, and the mean of the states that the calls made."""
        own, seen = {}, proposal.sums
        if has_carry(self.inner):
            own = self.inner.after(self._own(carry), Proposal(seen["own"], proposal.rows), params)
        mean = lambda total, old: (total / seen["calls"]).astype(old.dtype)
        return {**own, STATE_KEY: jax.tree.map(mean, seen["state"], carry[STATE_KEY])}

    def _own(self, carry) -> dict[str, Any] | None:
        """What the inner objective carries."""
        if not has_carry(self.inner):
            return None
        return {name: value for name, value in carry.items() if name != STATE_KEY}
