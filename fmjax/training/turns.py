"""One optimizer for parameters that take turns, as if each side had one of its own."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def by_turns(rule: optax.GradientTransformation, sides: Sequence[str]) -> optax.GradientTransformation:
    """`rule` for each side alone: the parameters below each name of `sides`, the first of their paths, and the others.

    No side sees the gradient of another, so neither a norm by which gradients are clipped nor a count is shared. Of a
    side that waits, the updates are 0 and the state stays as it is, but for its place in the schedule of the learning
    rate (`optax.ScaleByScheduleState`), which goes by the run's updates, whoever moves.

    The state is that of `rule`; what is of no parameter there, such as a count, is stacked, one a side.

    Returns: where there are sides, a transformation whose `update` takes `moves=` {name: bool []}; those not named
    always move. Else `rule`.
    """
    if not sides:
        return rule
    number_of = {name: number for number, name in enumerate(sides)}
    names = (*sides, None)

    def side(path, params) -> int | None:
        """The number of the side that a leaf of anything told a parameter is of; None for a leaf that is of none."""
        keys = (key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        name = next((key for key in keys if key in params), None)
        return None if name is None else number_of.get(name, len(sides))

    def init(params):
        stacked = lambda path, leaf: leaf if side(path, params) is not None else jnp.stack([leaf] * len(names))
        return jax.tree_util.tree_map_with_path(stacked, rule.init(params))

    def update_one(number: int, grads, state, params, moves):
        own = lambda path, leaf: leaf if side(path, params) == number else jnp.zeros_like(leaf)
        taken = lambda path, leaf: leaf[number] if side(path, params) is None else leaf
        state = jax.tree_util.tree_map_with_path(taken, state)
        updates, new = rule.update(jax.tree_util.tree_map_with_path(own, grads), state, params)
        if (moved := moves.get(names[number])) is None:
            return updates, new
        return jax.tree.map(lambda x: jnp.where(moved, x, jnp.zeros_like(x)), updates), _where_moved(moved, new, state)

    def update(grads, state, params, *, moves):
        def joined(path, *leaves):
            number = side(path, params)
            return jnp.stack(leaves) if number is None else leaves[number]

        found = [update_one(number, grads, state, params, moves) for number in range(len(names))]
        return tuple(jax.tree_util.tree_map_with_path(joined, *trees) for trees in zip(*found))

    return optax.GradientTransformationExtraArgs(init, update)


def _where_moved(moved, new, old):
    """An optimizer's state: the new one or the old one, but for the place in a schedule."""
    placed = lambda node: isinstance(node, optax.ScaleByScheduleState)
    return jax.tree.map(lambda n, o: n if placed(n) else jnp.where(moved, n, o), new, old, is_leaf=placed)
