"""SigLIP 2's training (Tschannen et al. 2025): the sigmoid loss, captions, self-distillation and masked prediction."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.objectives.base import Proposal, per_row
from fmjax.objectives.contrastive import Contrastive, contrast
from fmjax.objectives.cross_entropy import cross_entropy
from fmjax.objectives.self_distillation import consistency, momentum_at, moved_centre, random_crop

STUDENT = ("vision", "image_head", "patch_head")
"""The parameters that the teacher has of its own."""
WRITTEN = (("written", "tokens"), ("written_ids", "segment_ids"))
"""Arrays of what the decoder writes, where rows have such, and those of the text that stand for them else."""
PARALLEL, GLOBAL, LOCAL, HIDDEN = range(4)
"""What a row's key is folded with, by what is drawn."""


@dataclasses.dataclass(frozen=True)
class SigLIP2(Contrastive):
    """The sum of four losses, each reported by its own name and multiplied by its weight:

    - `sigmoid`: of every image and text of the batch, whether they belong together (`Contrastive`).
    - `captioning`: cross-entropy of the text's tokens and its end, by the decoder (LocCa, Wan et al. 2024); where rows
      have `written`, of that: captions, and boxes in words (`fmjax.data.shapes.boxes`). Each row is predicted in
      parallel with probability `parallel_share`, else token by token; in an evaluation, token by token.
    - `distillation`: the student sees `num_local` crops of a small part of the image, the teacher one of a large part;
      the student's distribution over prototypes, of the pooled vector, is to be the teacher's (SILC, Naeem et al.
      2023).
    - `masking`: the student sees the teacher's crop with `mask_ratio` of its patches hidden; of each of these its
      distribution is to be the teacher's of that patch (TIPS, Maninis et al. 2024).

    The last two come in when `distillation_from` of the run is done, and training only. The paper multiplies them by
    another factor for each size: 0.25 for B, 0.5 for L, 1 for So400m, 0.5 for g. Sigmoid and captioning read the whole
    image, so that crops do not take away what a text tells of.

    Carried are the teacher, which is the student until `distillation_from` and a moving average of it after, both
    heads' centres, and the numbers of steps in all and of those with self-distillation: once begun it goes on, also in
    a run that is resumed to be longer. Of `train.accumulate_steps` parts each contrasts its own rows alone.

    What the paper leaves to its sources, and is set here: the heads and temperatures are DINO's; crops are not
    coloured or mirrored; the centre of patches is that of the hidden ones; the momentum stays as it is, as in SILC,
    where a teacher that came to rest did not follow the texts.

    Attributes:
      caption_weight, distillation_weight, masking_weight: of these losses; the sigmoid's is 1.
      size_factor: another factor of distillation and masking, by the model's size.
      parallel_share: probability that a row's text is predicted in parallel.
      distillation_from: share of the run's steps after which the teacher is apart from the student.
      momentum, final_momentum: of the teacher, from that step to the last by half a cosine; None is `momentum`.
      centre_momentum: of the centres.
      student_temperature, teacher_temperature: what logits over prototypes are divided by.
      num_local: crops of an image that the student sees.
      local_size: their side in pixels, a multiple of the patch size; DINO's is 96 for images of 224.
      global_area, local_area: between which shares of the image's area the crops are.
      mask_ratio: share of patches that are hidden.
      run_steps: those that `distillation_from` is a share of; None is train.steps.
    """

    generator: ClassVar[str] = "captions"

    loss: str = "sigmoid"
    caption_weight: float = 1.0
    distillation_weight: float = 1.0
    masking_weight: float = 2.5
    size_factor: float = 0.25
    parallel_share: float = 0.5
    distillation_from: float = 0.8
    momentum: float = 0.996
    final_momentum: float | None = None
    centre_momentum: float = 0.9
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    num_local: int = 8
    local_size: int = 96
    global_area: tuple[float, float] = (0.4, 1.0)
    local_area: tuple[float, float] = (0.05, 0.4)
    mask_ratio: float = 0.5

    run_steps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.loss != "sigmoid":
            raise ConfigError(f"objective.loss = {self.loss!r}: SigLIP 2's is 'sigmoid'; leave it out")
        check_positive(**{"objective.num_local": self.num_local, "objective.local_size": self.local_size})
        if self.run_steps is not None:
            check_positive(**{"objective.run_steps": self.run_steps})
        for name in ("momentum", "final_momentum", "centre_momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"objective.{name} = {value} must be from 0 to 1")
        for name in ("caption_weight", "distillation_weight", "masking_weight", "size_factor"):
            if getattr(self, name) < 0:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be at least 0")
        for name in ("parallel_share", "distillation_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be from 0 to 1")
        for name in ("student_temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be above 0")
        for name in ("global_area", "local_area"):
            area = getattr(self, name)
            if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
                raise ConfigError(f"objective.{name} = {area} must be two shares above 0, at most 1, in order")
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(f"objective.mask_ratio = {self.mask_ratio} must be between 0 and 1")

    def over(self, steps: int) -> "SigLIP2":
        """This objective for a run of so many steps."""
        return dataclasses.replace(self, run_steps=steps) if self.run_steps is None else self

    @property
    def first_step(self) -> int:
        """From which on there is self-distillation."""
        if self.run_steps is None:
            raise ConfigError("objective siglip2 has parts that begin within a run: take objective.over(steps)")
        return round(self.distillation_from * self.run_steps)

    def check(self, module, data) -> None:
        """Raises ConfigError as of `Contrastive`, and where crops and patches do not fit."""
        super().check(module, data)
        longest = len(data.train[0].get("written", ()))
        if longest > module.decoder.max_length:
            raise ConfigError(
                f"rows have {longest} tokens for the decoder to write, and model.decoder.max_length is "
                f"{module.decoder.max_length}; make them fit"
            )
        vision = module.vision
        if not getattr(vision, "use_mask_token", False):
            raise ConfigError("objective siglip2 hides patches: set model.vision.use_mask_token = True")
        if self.local_size % vision.patch_size:
            raise ConfigError(
                f"objective.local_size = {self.local_size} must be a multiple of model.vision.patch_size = "
                f"{vision.patch_size}"
            )

    def initial(self, module, params, key) -> dict[str, Any]:
        """{"teacher": the parameters of image tower and heads, "centre": {"image", "patches": float32 [K]},
        "step" and "distilled": int32 []}. Raises ConfigError for another kind of model."""
        missing = [name for name in ("with_captions", "prototypes") if not hasattr(module, name)]
        if missing:
            raise ConfigError(
                f"objective siglip2 needs {missing[0]}(...), which {type(module).__name__} does not have; take "
                "model.name = 'siglip2'"
            )
        zeros = jnp.zeros(module.num_prototypes)
        return {
            "teacher": jax.tree.map(jnp.copy, {name: params[name] for name in STUDENT}),
            "centre": {"image": zeros, "patches": zeros},
            **{name: jnp.zeros((), jnp.int32) for name in ("step", "distilled")},
        }

    def _is_on(self, carry) -> jax.Array:
        """Whether there is self-distillation in this step, bool []."""
        return (carry["distilled"] > 0) | (carry["step"] >= self.first_step)

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry):
        """(sums over the batch, proposal): "loss", of which are "sigmoid", "captioning" a token, and in training
        "distillation" and "masking", which are not known before they come in; "image_to_text", "text_to_image" and
        "scale" as of `Contrastive`; in an evaluation "token_accuracy" of captions."""
        rngs, weights = {"dropout": key} if train and key is not None else None, batch["loss_weights"]
        parallel = None
        if train and self.parallel_share:
            drawn = lambda key: jax.random.bernoulli(jax.random.fold_in(key, PARALLEL), self.parallel_share)
            parallel = per_row(drawn, batch["keys"])
        pair, states = apply_fn(
            {"params": params}, **self.inputs(batch), written=batch.get("written"), parallel=parallel, train=train,
            rngs=rngs, method="with_captions",
        )  # fmt: skip
        several = self.positives == "labels"
        options = dict(labels=batch.get("labels"), loss=self.loss, several=several, chunk_size=self.chunk_size)
        found = contrast(**pair, weights=weights, **options)
        sums = {name: ((value * weights).sum(), weights.sum()) for name, value in found.items()}
        sums["sigmoid"], sums["scale"] = sums["loss"], (pair["scale"], jnp.ones(()))
        sums |= self._captioning(states, batch, train)
        proposal, terms = Proposal(), [(1.0, "sigmoid"), (self.caption_weight, "captioning")]
        if train:
            own, seen = self._self_distillation(apply_fn, params, batch, rngs, carry)
            sums, proposal = sums | own, Proposal(sums=seen)
            terms += [(self.size_factor * self.distillation_weight, "distillation")]
            terms += [(self.size_factor * self.masking_weight, "masking")]
        sums["loss"] = tuple((factor * sums[name][0], sums[name][1]) for factor, name in terms)
        return sums, proposal

    def _captioning(self, states, batch, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Of the decoder's states: each token of a text, and its end where the row has a place for it."""
        hidden, head = states
        tokens, is_text = (batch.get(own, batch[of_all]) for own, of_all in WRITTEN)
        is_text = is_text > 0
        before = jnp.pad(is_text[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        end_id = head["kernel"].shape[1] - 2
        targets = jnp.where(is_text, tokens, end_id)
        weights = (before * batch["loss_weights"][:, None]).astype(jnp.float32)
        sums = cross_entropy(hidden, head, targets, weights, count_correct=not train)
        found = {"captioning": (sums["loss"], weights.sum())}
        return found if train else found | {"token_accuracy": (sums["correct"], weights.sum())}

    def _self_distillation(self, apply_fn, params, batch, rngs, carry):
        """(sums of "distillation" and "masking", what the proposal tells), all zero before they come in."""
        on = self._is_on(carry)

        def live(params):
            student, teacher = self._views(apply_fn, params, batch, rngs, carry)
            compare = lambda a, b, name: consistency(
                a, b, carry["centre"][name], self.student_temperature, self.teacher_temperature
            )
            local = compare(student["image"], teacher["image"][:, None], "image").mean(1)
            patches = compare(student["patches"], teacher["patches"], "patches").mean(1)
            weights = batch["loss_weights"]
            totals = {name: jnp.einsum("b,b...k->k", weights, x) for name, x in teacher.items()}
            per_image = teacher["patches"].shape[1]
            counts = {"image": weights.sum(), "patches": weights.sum() * per_image}
            losses = {"distillation": (local * weights).sum(), "masking": (patches * weights).sum()}
            return losses, {"totals": jax.lax.stop_gradient(totals), "counts": counts}

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(live, params))
        losses, seen = jax.lax.cond(on, live, lambda _: nothing, params)
        weight = jnp.where(on, batch["loss_weights"].sum(), 0.0)
        return {name: (loss, weight) for name, loss in losses.items()}, seen

    def _views(self, apply_fn, params, batch, rngs, carry):
        """Logits over prototypes: the student's {"image": [B, num_local, K], "patches": [B, M, K]}, and the teacher's
        {"image": [B, K], "patches": [B, M, K]}."""
        draw = lambda purpose, make: per_row(
            lambda key, image: make(jax.random.fold_in(key, purpose), image), batch["keys"], batch["images"]
        )
        side = batch["images"].shape[1]
        local = lambda key, image: random_crop(key, image, self.local_size, self.local_area)
        several = lambda key, image: jax.vmap(local, (0, None))(jax.random.split(key, self.num_local), image)
        crops, parts = draw(GLOBAL, lambda *row: random_crop(*row, side, self.global_area)), draw(LOCAL, several)
        keys = draw(HIDDEN, lambda key, image: key)
        chosen = dict(keys=keys, mask_ratio=self.mask_ratio, method="prototypes")
        slow = jax.lax.stop_gradient({"params": {**params, **carry["teacher"]}})
        teacher = jax.lax.stop_gradient(apply_fn(slow, crops, **chosen))
        student = {"params": params}
        patches = apply_fn(student, crops, hides=True, train=True, rngs=rngs, **chosen)["patches"]
        flat = parts.reshape(-1, *parts.shape[2:])
        image = apply_fn(student, flat, train=True, rngs=rngs, method="prototypes")["image"]
        return {"image": image.reshape(len(parts), self.num_local, -1), "patches": patches}, teacher

    def after(self, carry, proposal: Proposal, params) -> dict[str, Any]:
        """The carry after an update: the teacher is the student before self-distillation comes in, and moves towards
        it after; the centres move towards the batch's mean."""
        on, first, last = self._is_on(carry), self.momentum, self.final_momentum
        steps = self.run_steps - self.first_step
        slowness = momentum_at(carry["distilled"], steps, first, first if last is None else last)
        rate = jnp.where(on, 1.0 - slowness, 1.0)
        student = {name: params[name] for name in STUDENT}
        seen, centre = proposal.sums, carry["centre"]
        return {
            "teacher": optax.incremental_update(student, carry["teacher"], rate),
            "centre": {
                name: moved_centre(value, seen["totals"][name], seen["counts"][name], self.centre_momentum)
                for name, value in centre.items()
            },
            "step": carry["step"] + 1,
            "distilled": carry["distilled"] + on,
        }
