"""Where parallel text comes from: two line-aligned files, or records with two fields."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator

from fmjax.data import formats
from fmjax.data.prepared import content_hash, fingerprint
from fmjax.data.sources import Source, SourceSpec, open_source
from fmjax.errors import DataError


@dataclasses.dataclass(frozen=True)
class LineSource:
    """A file whose lines are documents: one side of line-aligned text."""

    path: pathlib.Path
    reading: formats.Reading
    fingerprint: str
    has_heldout: bool = False
    num_documents: int | None = None
    options: frozenset[str] = frozenset({"encoding"})

    @classmethod
    def open(cls, path: str, reading: formats.Reading, cache_dir: pathlib.Path) -> "LineSource":
        """Raises DataError when there is no such file."""
        place = pathlib.Path(path).expanduser()
        if not place.is_file():
            raise DataError(f"data source {path!r}: no such file")
        return cls(place, reading, fingerprint("lines", content_hash(place, cache_dir), reading.encoding))

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def label(self) -> str:
        return self.path.name

    def read(self) -> Iterator[tuple[str, str, str]]:
        for number, line in formats.read_lines(self.path, self.reading):
            yield "train", str(number), line


@dataclasses.dataclass(frozen=True)
class ParallelSource:
    """Two sources read side by side, record by record: a `Source` whose documents are pairs of texts.

    Attributes:
      sides: the source and the target.
    """

    sides: tuple[Source, Source]
    num_documents: int | None = None  # pairs are held out whole, however few there are

    @property
    def name(self) -> str:
        return " and ".join(dict.fromkeys(side.name for side in self.sides))

    @property
    def label(self) -> str:
        return "+".join(dict.fromkeys(side.label for side in self.sides))

    @property
    def fingerprint(self) -> str:
        return fingerprint("parallel", *(side.fingerprint for side in self.sides))

    @property
    def has_heldout(self) -> bool:
        return self.sides[0].has_heldout

    @property
    def options(self) -> frozenset[str]:
        return self.sides[0].options

    def read(self) -> Iterator[tuple[str, str, tuple[str, str]]]:
        """(split, record name, (source, target)), white space around either left out. Raises DataError where one side
        has more records than the other."""
        streams = [side.read() for side in self.sides]
        count = 0
        for source, target in itertools.zip_longest(*streams):
            if source is None or target is None:
                counts = [count, count + 1 + sum(1 for _ in streams[1 if source is None else 0])]
                if target is None:
                    counts.reverse()
                raise DataError(
                    f"{self.sides[0].name} has {counts[0]} lines, but {self.sides[1].name} has {counts[1]}; line by "
                    "line the one must be the translation of the other"
                )
            count += 1
            split, record, text = source
            yield split, record, (text.strip(), target[2].strip())


def open_files(source_file: str, target_file: str, encoding: str | None, cache_dir: pathlib.Path) -> ParallelSource:
    """Line-aligned files. Raises DataError where one is missing."""
    reading = formats.Reading(encoding=encoding)
    return ParallelSource(
        (LineSource.open(source_file, reading, cache_dir), LineSource.open(target_file, reading, cache_dir))
    )


def open_records(spec: SourceSpec, fields: tuple[str, str], cache_dir: pathlib.Path) -> ParallelSource:
    """Records with a field for each side, read as `sources.open_source` does with a text_field."""
    source, target = (open_source(dataclasses.replace(spec, text_field=field), cache_dir) for field in fields)
    return ParallelSource((source, target))
