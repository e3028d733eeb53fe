"""Held-out rows and the documents behind them."""

from collections.abc import Mapping, Sequence

from fmjax.data.shuffle import ShuffledIndices
from fmjax.errors import ConfigError
from fmjax.registry import nearest


class ShuffledRows(Sequence):
    """Finite rows in one fixed random order, so that the first few of them speak for all the documents."""

    def __init__(self, rows: Sequence):
        self._rows = rows
        self._order = ShuffledIndices(len(rows), "evaluation")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._rows[self._order[index]]


class Joined(Sequence):
    """Several sequences one after another."""

    def __init__(self, parts: Sequence[Sequence]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)


def chosen_documents(documents: Mapping[str, Sequence[str]], split: str) -> Sequence[str]:
    """The documents of that name. Raises ConfigError for a name that is not there."""
    if split not in documents:
        hint = nearest(split, documents) or "."
        raise ConfigError(f"these data have no documents {split!r}{hint} Known: {sorted(documents)}")
    return documents[split]
