"""The bytes of one file, decompressed as they are read."""

import gzip
import pathlib
import zlib
from collections.abc import Iterator

from fmjax.errors import DataError

_BLOCK = 1 << 20
_DISGUISED = {  # a file that is not what its name says
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x1f\x8b": "compressed by gzip: name it .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: name it .zst",
    b"PAR1": "a parquet file: name it .parquet",
}


def read_blocks(path: pathlib.Path) -> Iterator[bytes]:
    """The file's bytes in blocks, those of .gz and .zst decompressed.

    Raises DataError for one that is damaged, or not text as its name says; OSError for one that cannot be opened.
    """
    suffix = path.suffix.lower()
    with open(path, "rb") as file:
        if suffix == ".gz":
            blocks = _gunzipped(file, path)
        elif suffix == ".zst":
            blocks = _unzstd(file, path)
        else:
            blocks = iter(lambda: file.read(_BLOCK), b"")
        for index, block in enumerate(blocks):
            if index == 0:
                for magic, what in _DISGUISED.items():
                    if block.startswith(magic):
                        raise DataError(f"{path} is not text, as its name says, but {what}")
            yield block


def _gunzipped(file, path: pathlib.Path) -> Iterator[bytes]:
    done = 0
    try:
        with gzip.open(file, "rb") as unzipped:
            while block := unzipped.read(_BLOCK):
                yield block
                done += len(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged gzip file, after {done} bytes of its content: {error}") from None


def _unzstd(file, path: pathlib.Path) -> Iterator[bytes]:
    # zstandard's own stream_reader takes a truncated file for a complete one; the end of each frame is checked here.
    import zstandard

    done, frame = 0, None
    try:
        while compressed := file.read(_BLOCK):
            while compressed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                block = frame.decompress(compressed)
                if block:
                    yield block
                    done += len(block)
                compressed = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = None
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: damaged zstd file, after {done} bytes of its content: {error}") from None
    if frame is not None or done == 0 and path.stat().st_size == 0:
        raise DataError(f"{path}: truncated zstd file, after {done} bytes of its content")
