"""Self-distillation: a student's distribution over prototypes is to be a slow teacher's (DINO, Caron et al. 2021; of
hidden patches: iBOT, Zhou et al. 2022), and the crops of an image that the two see."""

import jax
import jax.numpy as jnp

ASPECTS = (3 / 4, 4 / 3)
"""Between which the ratio of a crop's sides is drawn, evenly in its logarithm (Szegedy et al. 2015)."""


def consistency(
    student: jax.Array, teacher: jax.Array, centre: jax.Array, student_temperature: float, teacher_temperature: float
) -> jax.Array:
    """Cross-entropy of the student's softmax with the teacher's, centred and sharpened (DINO, equations 1 to 3 and
    section 3.1): float32 [...] in nats, with no gradient to the teacher.

    Args:
      student, teacher: logits float32 [..., K].
      centre: float32 [K], taken off the teacher's logits: against one prototype for all.
      student_temperature, teacher_temperature: what logits are divided by. A lower one of the teacher's works against
        all prototypes alike.
    """
    targets = jax.lax.stop_gradient(jax.nn.softmax((teacher - centre) / teacher_temperature))
    return -(targets * jax.nn.log_softmax(student / student_temperature)).sum(-1)


def moved_centre(centre: jax.Array, total: jax.Array, count: jax.Array, momentum: float) -> jax.Array:
    """The centre after a batch (DINO, equation 4): momentum * centre + (1 - momentum) * total / count, float32 [K]; as
    it is where nothing was counted."""
    mean = total / jnp.where(count > 0, count, 1.0)
    return jnp.where(count > 0, momentum * centre + (1.0 - momentum) * mean, centre)


def momentum_at(step: jax.Array, steps: int, first: float, last: float) -> jax.Array:
    """The teacher's momentum at a step of `steps`: from first to last by half a cosine (DINO, section 3.1)."""
    share = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return last - (last - first) * (jnp.cos(jnp.pi * share) + 1.0) / 2.0


def random_crop(key: jax.Array, image: jax.Array, size: int, area: tuple[float, float]) -> jax.Array:
    """A crop of an image float32 [H, W, C], brought to [size, size, C] (linear, smoothed before it is made smaller).

    area: between which shares of the image's area it is drawn, evenly. A side that would be longer than the image's is
    as long as that.
    """
    keys = jax.random.split(key, 3)
    height, width, channels = image.shape
    share = jax.random.uniform(keys[0], minval=area[0], maxval=area[1])
    aspect = jnp.exp(jax.random.uniform(keys[1], minval=jnp.log(ASPECTS[0]), maxval=jnp.log(ASPECTS[1])))
    whole = jnp.array([height, width], jnp.float32)
    sides = jnp.minimum(jnp.sqrt(height * width * share * jnp.stack([1.0 / aspect, aspect])), whole)
    corner = jax.random.uniform(keys[2], (2,)) * (whole - sides)
    scale = size / sides
    return jax.image.scale_and_translate(
        image, (size, size, channels), (0, 1), scale, -corner * scale, method="linear", antialias=True
    )
