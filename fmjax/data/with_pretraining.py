"""Prompts, and beside each some texts of pretraining: what InstructGPT's PPO-ptx is trained on."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np

from fmjax.data import DATASETS
from fmjax.data.base import OpenData, Row
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive

TEXT = ("tokens", "targets", "loss_weights", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class WithPretraining:
    """Rows of prompts, each with `texts` rows of text: `ptx_tokens`, `ptx_targets`, `ptx_segment_ids`, `ptx_positions`
    int32 and `ptx_loss_weights` float32 [texts, T'], as `TextData` has them. Held out are prompts alone.

    Attributes:
      prompts: data of prompts, such as {"name": "chat_prompts", ...}.
      text: data of texts, such as {"name": "text", ...}; cut by the same tokenizer.
      texts: rows of text beside each prompt; of InstructGPT 8, times the replies to it.
    """

    prompts: Annotated[dict, DATASETS]
    text: Annotated[dict, DATASETS]
    texts: int = 1

    def __post_init__(self):
        check_positive(**{"data.texts": self.texts})

    @property
    def example(self) -> dict[str, Any] | None:
        """The arrays of a row, known without reading any data."""
        found = [getattr(data, "example", None) for data in (self.prompts, self.text)]
        if None in found:
            return None
        beside = {f"ptx_{k}": jax.ShapeDtypeStruct((self.texts, *found[1][k].shape), found[1][k].dtype) for k in TEXT}
        return found[0] | beside

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """Both data. Raises ConfigError where they are cut by different tokenizers, or `text` has other rows."""
        options = dict(seed=seed, cache_dir=cache_dir, workdir=workdir, progress=progress)
        prompts, text = self.prompts.open(**options), self.text.open(**options)
        ours, theirs = (data.tokenizer for data in (prompts, text))
        if getattr(ours, "fingerprint", None) != getattr(theirs, "fingerprint", None):
            raise ConfigError(
                f"data.text is cut by another tokenizer ({getattr(theirs, 'source', None)}) than data.prompts "
                f"({getattr(ours, 'source', None)}); set data.text.tokenizer to that of the prompts"
            )
        if missing := [name for name in TEXT if name not in text.train[0]]:
            raise ConfigError(f"the rows of data.text have no {missing[0]!r}; take data.text.name = 'text'")

        def check(module) -> None:
            prompts.check(module)
            text.check(module)

        identity = {**prompts.identity, **{f"pretraining/{name}": one for name, one in text.identity.items()}}
        rows = BesideRows(prompts.train, text.train, self.texts)
        return dataclasses.replace(prompts, train=rows, check=check, identity=identity)


class BesideRows(Sequence):
    """Row i: prompt i, and texts i * k to (i + 1) * k - 1."""

    def __init__(self, prompts, text, texts: int):
        self._prompts, self._text, self._texts = prompts, text, texts

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Row:
        texts = [self._text[index * self._texts + place] for place in range(self._texts)]
        return self._prompts[index] | {f"ptx_{name}": np.stack([text[name] for text in texts]) for name in TEXT}
