"""A student, and beside it the matrices that bring its hidden states to its teacher's width."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models import MODELS


class Projected(nn.Module):
    """A student whose hidden states are compared with those of a teacher of another width (`objective.matches`).

    Each match of `names` has a matrix W [student's width, width] that is trained with the student (TinyBERT, Jiao et
    al. 2020, https://arxiv.org/abs/1909.10351, equation 8), one for all of its layers. What is loaded, served and
    exported of such a run is the student alone.

    Attributes:
      student: the model that is made, such as {"name": "bert", ...}.
      width: of the teacher's hidden states.
      names: of those of `objective.matches` that have a matrix.
    """

    SERVES = "student"

    student: Annotated[dict, MODELS]
    width: int
    names: tuple[str, ...] = ("hidden",)

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{"model.width": self.width})
        if not isinstance(getattr(self.student, "transformer", None), TransformerConfig):
            raise ConfigError(
                f"model.student = {type(self.student).__name__} has no property `transformer`, which tells the width "
                "of its hidden states; take 'bert', 'llama', 'vit' or another of one stack"
            )

    @property
    def student_width(self) -> int:
        """Of the student's hidden states."""
        return self.student.transformer.hidden_size

    def setup(self):
        init = Init(scale=self.student_width**-0.5)
        make = lambda: Linear(self.width, ("embed", None), False, init, self.student.dtype)
        self.projections = {name: make() for name in self.names}

    def __call__(self, *inputs, **options):
        """As the student's."""
        if self.is_initializing():
            for name in self.names:
                self.project(name, jnp.zeros((1, self.student_width)))
        return self.student(*inputs, **options)

    def features(self, *inputs, **options):
        """As the student's."""
        return self.student.features(*inputs, **options)

    def pretraining(self, *inputs, **options):
        """As the student's."""
        return self.student.pretraining(*inputs, **options)

    def project(self, name: str, x: jax.Array) -> jax.Array:
        """[..., width] of hidden states [..., student's width], for the match `name`."""
        return self.projections[name](x)

    @property
    def vocab_size(self) -> int | None:
        return getattr(self.student, "vocab_size", None)

    @property
    def max_length(self) -> int | None:
        return getattr(self.student, "max_length", None)

    @property
    def num_classes(self) -> int | None:
        return getattr(self.student, "num_classes", None)

    @property
    def image_size(self) -> int | None:
        return getattr(self.student, "image_size", None)

    @property
    def num_channels(self) -> int | None:
        return getattr(self.student, "num_channels", None)

    @nn.nowrap
    def place_of(self, other: nn.Module) -> str | None:
        """Where the parameters of another model belong with which this one begins; None for another of this kind."""
        return None if isinstance(other, Projected) else "student"

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be."""
        return self.student.example()

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of the student's forward and backward over one example, by the convention of `fmjax.layers.flops`."""
        return self.student.flops_per_example(shapes)


def student_of(module: nn.Module) -> nn.Module:
    """The student in a module that has matrices beside it; else the module itself."""
    return module.student if isinstance(module, Projected) else module
