"""Generation: prompts of token ids in, drawn tokens and their log-probabilities out.

What is asked for and what comes out is in `engine_requests`, the compiled programs are in `engine_programs`, and
`engine_run` puts waiting prompts into rows of the batch.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax

from fmjax import native
from fmjax.cache_folder import cache_dir
from fmjax.errors import InputError
from fmjax.inference import decoding, kinds
from fmjax.inference.checks import check_whole
from fmjax.inference.drafts import Drafted
from fmjax.inference.engine_parts import part_size
from fmjax.inference.engine_programs import CHUNK, Form
from fmjax.inference.engine_requests import HIGHEST_SEED, Completion, PromptRequest, add_acceptance, number_copies
from fmjax.inference.engine_run import Run
from fmjax.inference.sampler import Sampling, Uses
from fmjax.layers.checks import check_choice
from fmjax.layers.held import KINDS
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import is_weight
from fmjax.parallel.logical import mesh_axes, num_shards


class Engine:
    """A model made ready to generate.

    Holds the parameters in the form to decode with: beside the layers stacked for a scan, a second copy of them layer
    by layer. Whoever owns the stacked ones and needs them no more passes `donate=True`.

    Attributes:
      module, weights: that form.
      part: layers of a program where the stack is run in parts (`engine_parts.part_size`), or None.
      batch_size: rows generated at once.
      max_length: places of the cache, prompt and drawn tokens together; None takes what the requests of a run need,
        rounded up (`decoding.places`): other lengths then mean other programs.
      start_id: the token that an encoder-decoder's target starts from; None is `module.start_id`.
      num_tokens: only tokens below it are drawn, where the model's vocabulary is padded beyond its tokenizer's.
      banned_ids: tokens that are never drawn, such as the padding token of a Marian model.

    Under `jax.set_mesh` the parameters stay as they are sharded; with the logical axis rules of
    `fmjax.training.program.Program.inference` the cache is split over the mesh too, rows over the axes of the batch
    where they divide, heads as in training.
    """

    def __init__(
        self, module: nn.Module, params, *, batch_size: int = 16, max_length: int | None = None,
        start_id: int | None = None, num_tokens: int | None = None, banned_ids: Sequence[int] = (),
        donate: bool = False,
    ):  # fmt: skip
        """Raises InputError for a module that cannot generate, a size that is not possible, or a ban of no token."""
        check_whole(1, batch_size=batch_size)
        if max_length is not None:
            check_whole(1, getattr(module, "max_length", None), max_length=max_length)
        self.module, self.weights = decoding.prepare(module, params)
        leaves = jax.tree.leaves(self.weights, is_leaf=is_weight)
        if jax.default_backend() == "cpu" and any(isinstance(leaf, QTensor) for leaf in leaves):
            native.install(cache_dir() / "native")
        self.part = part_size(self.module, self.weights)
        self.batch_size, self.max_length, self.num_tokens = batch_size, max_length, num_tokens
        self.banned_ids = tuple(sorted({*banned_ids}))
        vocab_size = getattr(module, "vocab_size", None)
        if outside := [i for i in self.banned_ids if i < 0 or (vocab_size and i >= vocab_size)]:
            raise InputError(f"banned_ids has {outside[0]}, which is no token of the model's {vocab_size}")
        self.start_id = None
        if kinds.reads_source(module):
            self.start_id = module.start_id if start_id is None else start_id
            if self.start_id is None:
                raise InputError(f"{type(module).__name__} needs a start_id: the token that its targets start from")
        if donate:
            kept = {id(x) for x in jax.tree.leaves(self.weights)}
            for leaf in jax.tree.leaves(params):
                if id(leaf) not in kept:
                    leaf.delete()

    @property
    def context(self) -> int | None:
        """Places that the model and the cache have: the smaller of `module.max_length` and `max_length`."""
        known = (getattr(self.module, "max_length", None), self.max_length)
        return min((length for length in known if length is not None), default=None)

    def run(
        self, requests: Iterable[PromptRequest], *, stop_ids: Sequence[int] = (), steps: int = CHUNK,
        batch_size: int | None = None, cache_length: int | None = None, progress: str | None = None,
        cache: str = "float", draft: Drafted | None = None,
    ) -> Run:  # fmt: skip
        """Generates; the result is an iterator over chunks of tokens as they come.

        Args:
          requests: a list, which is checked before anything is computed, or an iterator, which is read as rows become
            free and needs a `max_length`.
          stop_ids: tokens that end a continuation, usually the end of text.
          steps: the host reads after so many tokens a row, or passes where there is a draft, at most CHUNK: fewer come
            sooner, and cost more dispatches.
          batch_size: fewer rows than the engine's (never more than there are requests).
          cache_length: places of the cache in this run; None is `max_length`, or what the requests need.
          progress: label of a progress bar over the requests; None shows none.
          cache: what keys and values are held in: "float", the dtype of the computation; "int8" or "int4", whole
            numbers with a scale for each position and head (`fmjax.layers.held`).
          draft: what proposes tokens (`fmjax.inference.drafts`), of which each pass of the model takes some: the law of
            what is drawn stays the model's. Of a draft that proposes for certain the text is the same as without.

        Raises: InputError for an empty or too long prompt, a token outside the vocabulary, or a bad value, and for a
          draft that the model cannot read or that reads less than a request takes.
        """
        if draft is not None and not kinds.can_rewind(self.module):
            raise InputError(
                f"{type(self.module).__name__} cannot take a draft: its cache gives nothing back; decoder language "
                "models such as 'gpt' and 'llama' can"
            )
        batch_size = self.batch_size if batch_size is None else batch_size
        check_whole(1, batch_size=batch_size, steps=steps)
        if cache_length is not None:
            check_whole(1, self.context, cache_length=cache_length)
        check_choice("cache", cache, KINDS)
        length = cache_length or self.max_length
        return Run(self, requests, stop_ids, steps, batch_size, length, progress, cache, draft)

    def generate(self, requests: Iterable[PromptRequest], **options) -> list[Completion]:
        """A Completion for each request, in order. Options as in `run`."""
        found: dict[int, Completion] = {}
        for chunk in self.run(requests, **options):
            one = found.setdefault(chunk.index, Completion([], [], ""))
            one.tokens.extend(chunk.tokens)
            one.logprobs.extend(chunk.logprobs)
            worth = add_acceptance(one.acceptance, chunk.acceptance)
            found[chunk.index] = dataclasses.replace(one, finish=chunk.finish or "", acceptance=worth)
        return [found[index] for index in range(len(found))]

    def check(self, index: int, request: PromptRequest) -> None:
        """Raises InputError for what cannot be generated from."""
        check_whole(1, max_new_tokens=request.max_new_tokens)
        check_whole(0, HIGHEST_SEED, seed=request.seed, copy=request.copy)
        if not len(request.tokens):
            raise InputError(f"prompt {index} is empty: the model needs a token to start from, such as BOS")
        if self.context is not None and len(request.tokens) > self.context:
            whose = "cache" if self.context == self.max_length else "model's context"
            raise InputError(
                f"prompt {index} has {len(request.tokens)} tokens, more than the {whose} of {self.context}; shorten it"
            )
        vocab_size = getattr(self.module, "vocab_size", None)
        unknown = [token for token in request.tokens if not 0 <= token < vocab_size] if vocab_size else []
        if unknown:
            raise InputError(f"prompt {index} contains token {unknown[0]}; the model has 0..{vocab_size - 1}")

    def allowed(self, request: PromptRequest) -> int:
        """Tokens that a request may draw. The last one is never an input: one more than there are places left."""
        if self.context is None:
            return request.max_new_tokens
        return min(request.max_new_tokens, self.context - self._taken(request) + 1)

    def places(self, request: PromptRequest) -> int:
        """Places of the cache that a request may fill."""
        return self._taken(request) + self.allowed(request) - 1

    def _taken(self, request: PromptRequest) -> int:
        return 1 if self.start_id is not None else len(request.tokens)

    def form(self, uses: Uses, batch_size: int, cache: str = "float") -> Form:
        """What the programs of a run are compiled for, in the mesh and with the rules of the present context."""
        rules = dict(nn.get_logical_axis_rules())
        packed = rules | {"batch": (), "length": ()} if rules else {}
        mesh = jax.sharding.get_abstract_mesh()
        (rows,) = mesh_axes(mesh, ("cache_rows",))
        if rows:
            rules |= {"batch": rows if batch_size % num_shards(mesh, rows) == 0 else (), "length": ()}
        else:
            rules = packed
        both = tuple(rules.items()), tuple(packed.items())
        part = self.part if mesh.empty else None
        return Form(self.module, uses, self.num_tokens, self.start_id, *both, self.banned_ids, part, cache)


def generate(
    module: nn.Module,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    batch_size: int = 16,
    num_tokens: int | None = None,
    **sampling,
) -> list[Completion]:
    """Continues each prompt, with an engine made for this one call (`Engine` keeps what is worth keeping).

    Args:
      module: a model as `fmjax.inference.decoding` describes.
      params: its parameters.
      prompts: token ids, at least one each and at most `module.max_length`; lengths may differ.
      max_new_tokens: drawn at most, fewer where the context ends.
      seed: with the prompt's own tokens it fixes the random keys, whatever other prompts are in the list; a prompt
        given n times draws n different continuations. In bfloat16 and float16 logits round otherwise in another batch.
      stop_ids, batch_size, num_tokens: see `Engine`.
      sampling: fields of `Sampling`.

    Returns: one Completion a prompt, in order.
    Raises: InputError for an empty or too long prompt, a token outside the vocabulary, a bad sampling value.
    """
    drawing = Sampling(**sampling)
    engine = Engine(module, params, batch_size=batch_size, num_tokens=num_tokens)
    requests = [
        PromptRequest(p, max_new_tokens, drawing, seed, copy) for p, copy in zip(prompts, number_copies(prompts))
    ]
    return engine.generate(requests, stop_ids=stop_ids)
