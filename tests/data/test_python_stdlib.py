"""The built-in dataset on the real standard library: complete, no leaks, packed tightly, opened fast, no TensorFlow."""

import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

from fmjax.data import python_stdlib, stdlib_files
from fmjax.data.sources import SourceSpec, open_source
from fmjax.data.text import TextData


@pytest.fixture(scope="module")
def builtin_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builtin")
    python_stdlib.prepare(folder)
    return folder


def split(cache, name):
    documents = python_stdlib.open_split(cache, name)
    return {documents[i]["name"].decode(): documents[i]["text"].decode() for i in range(len(documents))}


def test_documents_and_splits(builtin_cache):
    train, heldout = split(builtin_cache, "train"), split(builtin_cache, "heldout")
    assert not set(train) & set(heldout)
    texts = [hashlib.sha256(text.encode()).digest() for text in [*train.values(), *heldout.values()]]
    assert len(set(texts)) == len(texts)  # so no held-out text is a training text
    assert 0.005 < len(heldout) / (len(train) + len(heldout)) < 0.05
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    together = train | heldout
    for name in ("os.py", "json/decoder.py", "asyncio/base_events.py"):
        assert together[name] == (library / name).read_bytes().decode()
    assert not any("site-packages" in name or "__pycache__" in name for name in together)
    expected = {
        path.relative_to(library).as_posix(): path
        for path in library.rglob("*.py")
        if not {"site-packages", "dist-packages", "__pycache__"} & set(path.relative_to(library).parts)
    }
    for name in set(expected) - set(together):  # left out: empty, a copy of another, or in no declared encoding
        text = stdlib_files.decode(name, expected[name].read_bytes())
        assert not text or hashlib.sha256(text.encode()).digest() in texts
    version = "{}.{}.{}".format(*platform.python_version_tuple()[:2], sys.version_info[2])
    assert list(builtin_cache.glob(f"python_stdlib/*/python_stdlib/{version}/*.array_record*"))


def test_it_is_a_tfds_dataset_like_any_other(builtin_cache, tmp_path):
    source = open_source(SourceSpec("tfds:python_stdlib"), tmp_path)  # not prepared there yet
    found = {"train": set(), "heldout": set()}
    for split_name, _, text in source.read():
        found[split_name].add(text)
    for name in found:
        assert found[name] == set(split(builtin_cache, name).values())


def test_what_cannot_be_read_is_left_out_and_every_change_shows(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.py").write_bytes(b"x = 1\r\n")
    (tmp_path / "b.txt").write_bytes(b"one")
    (tmp_path / "broken.py").symlink_to(tmp_path / "nowhere.py")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    documents = [("b.txt", "one"), ("deep/a.py", "x = 1\r\n")]
    assert list(stdlib_files.read_documents(tmp_path)) == documents
    first = stdlib_files.library_fingerprint(tmp_path)
    assert stdlib_files.library_fingerprint(tmp_path) == first
    state = (tmp_path / "b.txt").stat()
    (tmp_path / "b.txt").write_bytes(b"two")  # name, size and time as before
    os.utime(tmp_path / "b.txt", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert stdlib_files.library_fingerprint(tmp_path) != first


def test_decoding_follows_the_declared_encoding():
    decode = stdlib_files.decode
    assert decode("a.py", b"# coding: koi8-r\n# \xc1\r\n") == "# coding: koi8-r\n# а\r\n"
    assert decode("a.py", b"\xef\xbb\xbfx = 1\n") == "x = 1\n"
    assert decode("a.py", b"x = '\xff'\n") is None
    assert decode("a.py", b"# coding: no-such\n") is None
    assert decode("a.txt", "é\r\n".encode()) == "é\r\n" and decode("a.txt", b"\xff") is None


@pytest.mark.parametrize("sequence_length", [256, 512])
def test_padding_is_below_two_percent(builtin_cache, sequence_length):
    data = TextData(tokenizer="bytes", sequence_length=sequence_length).open(seed=0, cache_dir=builtin_cache)
    for rows, count in ((data.train, 2000), (data.evaluation["heldout"], len(data.evaluation["heldout"]))):
        padding = np.mean([(rows[i]["segment_ids"] == 0).mean() for i in range(count)])
        assert padding < 0.02
    sizes = [len(text.encode()) for text in data.documents()]
    heldout = data.evaluation["heldout"]
    filled = sum(int(heldout[i]["loss_weights"].sum()) for i in range(len(heldout)))
    assert filled == sum(sizes) + len(sizes)  # one target a byte, one for each document's end


def test_warm_open_is_fast_and_loads_no_tensorflow(builtin_cache):
    code = """
import json, pathlib, sys, time
start = time.perf_counter()
from fmjax.data.sources import SourceSpec, open_source
from fmjax.data.text import TextData
from fmjax.data.loader import Loader
data = TextData(tokenizer="bytes", sequence_length=256).open(seed=0, cache_dir=pathlib.Path(sys.argv[1]))
next(Loader(data.train, 8))
seconds = time.perf_counter() - start
warm = sorted(m for m in sys.modules if m in ("tensorflow", "tensorflow_datasets", "pyarrow"))
from fmjax.data import python_stdlib
len(python_stdlib.open_split(pathlib.Path(sys.argv[1]), "train")[0]["text"])
print(json.dumps([seconds, warm, "tensorflow" in sys.modules]))
"""
    TextData(tokenizer="bytes", sequence_length=256).open(seed=0, cache_dir=builtin_cache)
    done = subprocess.run([sys.executable, "-c", code, str(builtin_cache)], capture_output=True, text=True, check=True)
    seconds, warm, tensorflow = json.loads(done.stdout.splitlines()[-1])
    assert seconds < 10  # about 1.5 s, most of it importing JAX and Grain, on a free core
    assert warm == [] and not tensorflow
