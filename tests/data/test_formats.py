"""Reading files: text kept exactly, and one clear message for everything that is wrong with a file."""

import gzip
import json
import pathlib
import random
import zipfile

import pytest

from fmjax.data import blocks, formats
from fmjax.data.formats import Reading, read_file
from fmjax.errors import ConfigError, DataError

TEXTS = ["one\r\ntwo\r", "", "naïve ☃\u2028\x85\x0c end", "  \n\n", "\ufeffbom", "\0"]


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
    zstandard = pytest.importorskip("zstandard")
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)
    return path


def parquet(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def documents(path, **reading):
    return [text for _, text in read_file(path, Reading(**reading))]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst", ".md", ".rst", ".PY", ".text", ".md.gz", ".py.zst"])
def test_txt_is_one_document_byte_for_byte(tmp_path, suffix):
    whole = "".join(TEXTS)
    assert documents(write(tmp_path / f"a{suffix}", whole.encode())) == [whole]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json.zst", ".ndjson"])
def test_json_lines(tmp_path, suffix):
    lines = b"\xef\xbb\xbf" + b"\r\n\n".join(
        json.dumps({"text": text}, ensure_ascii=i % 2 == 0).encode() for i, text in enumerate(TEXTS)
    )
    path = write(tmp_path / f"a{suffix}", lines)
    assert documents(path) == TEXTS
    assert [number for number, _ in read_file(path, Reading())] == [1, 3, 5, 7, 9, 11]  # lines of the file


def test_json_array_and_parquet(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([{"body": text} for text in TEXTS], indent=2).encode())
    assert documents(path, text_field="body") == TEXTS
    assert documents(parquet(tmp_path / "a.parquet", {"body": TEXTS, "n": range(6)}), text_field="body") == TEXTS


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n\n", "\n"])
@pytest.mark.parametrize("block", [1, 3, 7, 1 << 20])
def test_separated_documents_whatever_the_blocks(tmp_path, monkeypatch, separator, block):
    monkeypatch.setattr(blocks, "_BLOCK", block)
    text = separator.join(["a☃", "bb\r", "", "ccc" * 30, "\n d"]) + separator
    path = write(tmp_path / "a.txt", text.encode())
    assert documents(path, document_separator=separator) == text.split(separator)


def test_other_encodings(tmp_path):
    assert documents(write(tmp_path / "a.txt", "año\r\n".encode("latin-1")), encoding="latin-1") == ["año\r\n"]
    assert documents(write(tmp_path / "b.txt", "año ☃".encode("utf-16")), encoding="utf-16") == ["año ☃"]
    assert documents(write(tmp_path / "c.jsonl", '{"text": "año"}'.encode("cp1252")), encoding="cp1252") == ["año"]
    with pytest.raises(ConfigError, match="'latin-one' is not known"):
        formats.check_encoding("latin-one")


@pytest.mark.parametrize("block", [4, 1 << 20])
def test_invalid_utf8_names_line_and_offset(tmp_path, monkeypatch, block):
    monkeypatch.setattr(blocks, "_BLOCK", block)
    path = write(tmp_path / "a.txt", "☃ one\ntwo ☃ x".encode() + "ñ".encode("latin-1") + b" end")
    with pytest.raises(DataError, match=r"a\.txt line 2: byte 0xf1 at offset 17 is not valid utf-8.*'latin-1'"):
        documents(path)
    path = write(tmp_path / "b.txt", "cut ☃".encode()[:-1])
    with pytest.raises(DataError, match=r"b\.txt line 1: byte 0xe2 at offset 4"):
        documents(path)


BAD_RECORDS = [
    (b'{"text": "a"}\n{"text": "b"\n', r"a\.jsonl line 2: not a JSON object"),
    (b'{"text": "a"}\n["b"]\n', r"line 2: expected an object with a 'text' field, found list"),
    (b'{"txt": "a"}\n', r"line 1: no field 'text'; did you mean 'txt'\? Found: txt"),
    (b'{"text": 3}\n', r"line 1: field 'text' must be a string, found int"),
    (b'{"text": null}\n', r"line 1: field 'text' must be a string, found NoneType"),
    (b'{"text": "a\\ud800"}\n', r"line 1: the text has half a surrogate pair at character 1"),
    (b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2: byte 0xff at offset 24 is not valid utf-8"),
]


@pytest.mark.parametrize("content,message", BAD_RECORDS)
def test_bad_records_name_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        documents(write(tmp_path / "a.jsonl", content))


def test_bad_arrays_name_the_record(tmp_path):
    with pytest.raises(DataError, match=r"a\.json record 2: no field 'text'"):
        documents(write(tmp_path / "a.json", b'[{"text": "a"}, {"title": "b"}]'))
    with pytest.raises(DataError, match=r"a\.json: not a JSON array"):
        documents(write(tmp_path / "a.json", b'[{"text": "a"},\n {"te'))


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst"])
@pytest.mark.parametrize("keep", [0.99, 0.5])
def test_truncated_compression(tmp_path, suffix, keep):
    noise = random.Random(0)
    lines = [json.dumps({"text": str(noise.random())}) for _ in range(2000)]
    path = write(tmp_path / f"a{suffix}", "\n".join(lines).encode())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=rf"a{suffix}: truncated"):
        documents(path)


def test_an_empty_zstd_file_is_truncated(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.txt\.zst: truncated"):
        documents(tmp_path / "a.txt.zst")


def test_zstd_frames_are_joined(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(frame(b"one ") + frame(b"two"))
    assert documents(tmp_path / "a.txt.zst") == ["one two"]


def test_damaged_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": ["a" * 1000] * 50})
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: truncated or damaged parquet"):
        documents(path)
    path = parquet(tmp_path / "b.parquet", {"content": ["a"], "texts": ["b"]})
    with pytest.raises(DataError, match=r"b\.parquet: no field 'text'; did you mean 'texts'\? Found: content, texts"):
        documents(path)
    path = parquet(tmp_path / "c.parquet", {"text": ["a", None]})
    with pytest.raises(DataError, match=r"c\.parquet row 2: field 'text' must be a string, found NoneType"):
        documents(path)


def test_files_in_disguise_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.json", "w") as archive:
        archive.writestr("a.json", "[]")
    with pytest.raises(DataError, match=r"a\.json is not text.* but a zip archive: unpack it"):
        documents(tmp_path / "a.json")
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"text"))
    with pytest.raises(DataError, match=r"b\.txt is not text.* gzip"):
        documents(tmp_path / "b.txt")
    (tmp_path / "c.txt.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"c\.txt\.gz: truncated or damaged gzip"):
        documents(tmp_path / "c.txt.gz")
    (tmp_path / "d.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"d\.csv: unsupported.*\.jsonl.*\.parquet"):
        documents(tmp_path / "d.csv")
