"""The protocol of the config's section `weights`: what the leaves of a parameter tree become."""

from typing import Any, Protocol

import jax


class Weights(Protocol):
    """A frozen dataclass whose fields are the keys of the section.

    Attributes:
      trainable: regular expressions of the parameters that train where `train.trainable` names none; empty: all.

    A loaded model computes with whole kernels made of these weights; of a class with a method `served(params)` with
    what that gives. One with a method `stored(shapes)`, from shapes of a module's parameters, says by name what becomes
    of those that are not kept in floats: of what a run begins with each is given to it as soon as it is read, so that
    not all are floats at a time, and `attach` takes what was made as it is. One with a method `check_begun(params)` is
    told what a run begins with, as the module has it (None: drawn), and raises ConfigError where it is of no use there.
    """

    trainable: tuple[str, ...]

    def attach(self, params: Any, key: jax.Array) -> Any:
        """The tree with the leaves that the config asks for replaced by weights of `fmjax.layers.weights`.

        Args:
          params: a module's parameters; boxed with logical axis names, what replaces them is boxed too.
          key: random key for what is drawn.

        Raises ConfigError where a pattern matches nothing.
        """
