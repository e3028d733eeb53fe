"""What every data plugin hands to the trainer: `OpenData`, and the protocol of the plugin that opens it.

A data plugin is a frozen dataclass whose fields are the keys of the config's `data` section, with a method `open`.
Everything slow (reading, tokenising, packing) happens in `open` and is cached under `cache_dir`; `open` with the
same fields, seed and source gives the same rows on every host, so a run is described by one integer, its step.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from fmjax.errors import ConfigError

Row = dict[str, np.ndarray]
"""One example without a batch axis, such as {"tokens": int32 [T], ...}."""


def described(**lengths: int | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays of a row that are only described: int32 of these lengths, scalar for None; `loss_weights` are float32."""
    kinds = {name: np.float32 if name == "loss_weights" else np.int32 for name in lengths}
    return {name: jax.ShapeDtypeStruct(() if n is None else (n,), kinds[name]) for name, n in lengths.items()}


def stacked(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as one dict of arrays with a leading axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Rows(Protocol):
    """Random-access rows; `rows[i]` is a pure function of i (and of what the rows were opened with)."""

    def __getitem__(self, index: int) -> Row: ...


def no_documents(split: str = "heldout") -> Sequence[str]:
    """The `documents` of data that are not text: raises ConfigError."""
    raise ConfigError(
        f"these data have no text documents (split {split!r} was asked for); the task images_heldout scores held-out "
        "images of classes, eval/loss of the training held-out rows of any kind"
    )


def fits_any_module(module: Any) -> None:
    """The `check` of data that ask nothing of the module."""


@dataclasses.dataclass(frozen=True)
class OpenData:
    """Data ready to be read.

    Attributes:
      train: endless random-access rows, `train[i]` for any i >= 0. A pure function of (config, seed, i).
      evaluation: finite sequences of rows by name, such as {"heldout": rows}; may be empty.
      tokenizer: a `fmjax.data.tokenizers.loading.Tokenizer`, or None for data that are not text.
      codecs: by modality ("image", "label", ...), what makes arrays of values and values of arrays
        (`fmjax.data.codecs`); saved with the run. Text has the tokenizer.
      model_fields: fills the module's fields that the config leaves at None, such as {"vocab_size": 2048}.
      check: `check(module)` raises ConfigError when module and data do not fit together.
      identity: short strings that name the data (content hash) and tokenizer; saved with a run, compared at resume.
      trained_on: of data that are files, or images in files, the hashes of those that are trained on (`content_hash`).
      documents: `documents(split)` gives the raw documents behind the evaluation rows of that name, as a sequence
        of str; raises ConfigError for a split that is not there.
      stop_ids: tokens that end a reply in these data: what is generated ends there too, besides the tokenizer's EOS.
      num_train: examples that `train` shows before any comes again; None where the data do not tell.
      drawn_anew: whether an example that comes again is another row: another crop, a shift, mixed with another.
    """

    train: Rows
    evaluation: Mapping[str, Sequence[Row]] = dataclasses.field(default_factory=dict)
    tokenizer: Any = None
    codecs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: Callable[[Any], None] = fits_any_module
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained_on: Sequence[str] = ()
    documents: Callable[..., Sequence[str]] = no_documents
    stop_ids: Sequence[int] = ()
    num_train: int | None = None
    drawn_anew: bool = False


class DataPlugin(Protocol):
    """What every data plugin has.

    One whose reading is slow may also have `foreseen`, what of `OpenData.model_fields` it knows before, and
    `check_foreseen(module)`, which raises ConfigError for a module, made with these, that does not fit.
    """

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The data, read and prepared: an `OpenData`.

        Args:
          seed: of the shuffling, and of what else is random in the rows.
          cache_dir: where prepared data are kept.
          workdir: of the run; None where there is none.
          progress: whether to show progress on stderr.
        """
