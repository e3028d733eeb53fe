"""Generation by a deep stack on a CPU: programs of a few layers each, which the host calls one after the other.

XLA takes as long to compile a program as it is deep. Parts of as many layers share one program, so that depth costs
nothing. For a step of few rows the calls cost about a tenth of its time, the host's work for every array that goes in
and out, so a long run decodes by one program of the whole stack; prompts are always read in parts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmjax.inference import decoding
from fmjax.inference.decoding import Entered, Packed, Weights
from fmjax.inference.engine_programs import (
    TRACES, Drawn, Form, Starting, State, begin_chunk, begin_rows, draw, ended, programs,
)  # fmt: skip
from fmjax.layers.transformer import decode_part
from fmjax.models.decoder import Decoder

PART_LAYERS = (3, 4, 2)
"""Layers of a part: the first of these that divides the stack, or the first of all and a shorter part at the end."""

PART_BYTES = 2**25
"""Weights of a part, read in about 2 ms, beside which its call costs little."""

BRIEF = 100
"""Steps up to which a run decodes in parts."""


def part_size(module, weights: Weights) -> int | None:
    """Layers of a part; None where the whole stack is one program: on accelerators, and where it is small."""
    divides = isinstance(module, Decoder) and type(module).features is Decoder.features
    if jax.default_backend() != "cpu" or not divides:
        return None
    c = module.transformer
    fitting = [size for size in PART_LAYERS if size % len(c.pattern) == 0]
    default = -(-PART_LAYERS[0] // len(c.pattern)) * len(c.pattern)
    size = next((size for size in fitting if c.num_layers % size == 0), default)
    layer = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights.params["stack"]["blocks_0"]))
    return size if c.num_layers >= 2 * size and layer * size >= PART_BYTES else None


def programs_of(form: Form):
    """(start, prefill, decode) for a form, called alike."""
    start, prefill, decode = programs()
    return (start, prefill, decode) if form.part is None else (start, _prefill, _decode)


class _Programs(NamedTuple):
    """The jitted programs of one form."""

    read: object  # packed prompts into the first layer
    begin: object  # a chunk, with the inputs of its first step
    layers: object  # a part
    first: object  # the first tokens of prompts
    next: object  # a token a row, with the inputs of the next step


@functools.lru_cache(maxsize=16)
def _programs(form: Form) -> _Programs:
    module, config = form.module, form.module.transformer

    def enter(weights, state):
        active = (state.remaining > 0)[:, None].astype(jnp.int32)
        return decoding.enter(module, weights, state.cache, state.token[:, None], active)

    def read(weights: Weights, state: State, packed: Packed) -> Entered:
        where = dict(positions=packed.positions, slots=packed.slots)
        return decoding.enter(module, weights, state.cache, packed.tokens, packed.segment_ids, **where)

    def begin(weights: Weights, state: State, alive):
        state, drawn = begin_chunk(state, alive)
        return state, drawn, enter(weights, state)

    def layers(blocks, entered: Entered, entries):
        TRACES["part"] += 1
        x, segment_ids, positions, step = entered
        return decode_part(config, blocks, x, segment_ids, positions, (step, entries))

    def first(weights: Weights, state: State, x, after, packed: Packed, starting: Starting, stop_ids):
        TRACES["prefill"] += 1
        logits = decoding.leave(module, weights, x, packed.last)
        return begin_rows(form, logits, state._replace(cache={"lengths": after}), packed, starting, stop_ids)

    def next_token(weights: Weights, state: State, drawn: Drawn, x, after, stop_ids, free_rows):
        TRACES["decode"] += 1
        logits = decoding.leave(module, weights, x, jnp.arange(len(x)))
        state, drawn = draw(form, logits, state._replace(cache={"lengths": after}), drawn, stop_ids)
        return state, drawn, enter(weights, state), ended(state, free_rows)

    return _Programs(
        jax.jit(read), jax.jit(begin, donate_argnums=1), jax.jit(layers, donate_argnums=2),
        jax.jit(first, donate_argnums=1), jax.jit(next_token, donate_argnums=(1, 2)),
    )  # fmt: skip


class _Stack:
    """The layers of a form in parts, and their entries of the cache, which a pass updates.

    Attributes:
      weights: those outside the layers.
      state: the engine's without the layers' entries.
    """

    def __init__(self, form: Form, weights: Weights, state: State):
        self._run = _programs(form).layers
        stack = dict(weights.params["stack"])
        blocks = [stack.pop(f"blocks_{layer}") for layer in range(form.module.transformer.num_layers)]
        self.weights = weights._replace(params=weights.params | {"stack": stack})
        self._blocks, self._entries = (
            [tuple(x[start : start + form.part]) for start in range(0, len(x), form.part)]
            for x in (blocks, state.cache["layers"])
        )
        self.state = state._replace(cache={"lengths": state.cache["lengths"]})

    def __call__(self, entered: Entered):
        """The last layer's output."""
        for part, blocks in enumerate(self._blocks):
            x, self._entries[part] = self._run(blocks, entered, self._entries[part])
            entered = entered._replace(x=x)
        return entered.x

    def joined(self, state: State) -> State:
        """A state as it leaves the programs, with the layers' entries."""
        layers = tuple(entry for part in self._entries for entry in part)
        return state._replace(cache=state.cache | {"layers": layers})


def _prefill(form: Form, weights: Weights, state: State, packed: Packed, starting: Starting, stop_ids):
    """As `engine_programs.programs()[1]`."""
    run, stack = _programs(form), _Stack(form, weights, state)
    entered = run.read(stack.weights, stack.state, packed)
    x = stack(entered)
    state, *out = run.first(stack.weights, stack.state, x, entered.step.after, packed, starting, stop_ids)
    return stack.joined(state), *out


def _decode(form: Form, weights: Weights, state: State, alive, stop_ids, steps, free_rows):
    """As `engine_programs.programs()[2]`, a step longer where rows have stopped."""
    run, stack = _programs(form), _Stack(form, weights, state)
    state, drawn, entered = run.begin(stack.weights, stack.state, alive)
    before = None
    for _ in range(int(steps)):
        x = stack(entered)
        after = entered.step.after
        state, drawn, entered, done = run.next(stack.weights, state, drawn, x, after, stop_ids, free_rows)
        # Of the step before, so that the host is one step ahead of the device.
        if before is not None and before:
            break
        before = done
    return stack.joined(state), *drawn[1:]
