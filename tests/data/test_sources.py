"""Where documents come from: files, globs, folders of shards, TFDS datasets, objects by import path."""

import dataclasses
import json
import sys
import textwrap

import pytest

from fmjax.data.sources import SourceSpec, open_source, split_evaluation, split_train
from fmjax.data.text import TextData
from fmjax.errors import ConfigError, DataError


def read(spec, cache_dir):
    spec = SourceSpec(**spec) if isinstance(spec, dict) else SourceSpec(str(spec))
    found = {"train": [], "heldout": []}
    for split, _, text in open_source(spec, cache_dir).read():
        found[split].append(text)
    return found


def folder_of(root, **files):
    """Writes files of lines; a name's `__` stands for a folder, its last `_` for the dot."""
    for name, texts in files.items():
        stem, _, suffix = name.rpartition("_")
        path = root / f"{stem.replace('__', '/')}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts) if suffix == "jsonl" else "".join(texts))
    return root


def test_file_glob_and_folder(tmp_path):
    root = folder_of(tmp_path, sub__b_jsonl=["2"], a_jsonl=["0", "1"], sub__c_jsonl=["3"], notes_md=["no"])
    cache = tmp_path / ".cache"
    everything = {"train": ["0", "1", "2", "3"], "heldout": []}
    assert read(root, cache) == everything
    assert read(root / "**/*.jsonl", cache) == everything
    assert read(root / "sub" / "[bc].jsonl", cache)["train"] == ["2", "3"]
    assert read(root / "a.jsonl", cache)["train"] == ["0", "1"]


def test_split_names_are_recognised(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        table = pyarrow.table({"text": [name]})
        pyarrow.parquet.write_table(table, tmp_path / "hub" / "data" / f"{name}.parquet")
    (tmp_path / "hub" / "README.md").write_text("card")
    expected = {"train": ["train-00000-of-00002", "train-00001-of-00002"], "heldout": ["validation-00000-of-00001"]}
    assert read(tmp_path / "hub", tmp_path) == expected
    assert read(tmp_path / "hub" / "data" / "*.parquet", tmp_path) == expected
    (tmp_path / "hub" / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"shard 00001 of 2 of 'data/train' is missing"):
        read(tmp_path / "hub", tmp_path)
    folders = folder_of(tmp_path / "folders", train__x_jsonl=["a"], val__x_jsonl=["b"])
    assert read(folders, tmp_path) == {"train": ["a"], "heldout": ["b"]}
    test_only = folder_of(tmp_path / "test", train_jsonl=["a"], test_jsonl=["b"])
    assert read(test_only, tmp_path) == {"train": ["a"], "heldout": ["b"]}


def test_plain_text_kinds_are_documents_unless_beside_others(tmp_path, caplog):
    root = folder_of(tmp_path / "project", README_md=["card"], src__b_rst=["doc"])
    (root / "src" / "__init__.py").write_text("code")
    assert sorted(read(root, tmp_path)["train"]) == ["card", "code", "doc"]
    assert read(root / "*.md", tmp_path)["train"] == ["card"] and not caplog.text
    folder_of(root, train_txt=["a"], valid_txt=["b"])
    assert read(root, tmp_path) == {"train": ["a"], "heldout": ["b"]}
    assert "3 files beside its 2 documents are left out (README.md)" in caplog.text


def test_unclear_folders_are_refused(tmp_path, caplog):
    mixed = folder_of(tmp_path / "mixed", a_jsonl=["a"], b_txt=["b"])
    with pytest.raises(DataError, match=r"mixes kinds of files \(a\.jsonl, b\.txt\).*glob"):
        read(mixed, tmp_path)
    some = folder_of(tmp_path / "some", train_jsonl=["a"], test_jsonl=["b"], extra_jsonl=["c"])
    with pytest.raises(DataError, match=r"some are not \(extra\.jsonl\)"):
        read(some, tmp_path)
    assert read(some / "*.jsonl", tmp_path)["train"] == ["c", "b", "a"]  # a glob that says so takes all
    assert "All 3 files" in caplog.text and "test.jsonl too" in caplog.text
    none = folder_of(tmp_path / "none", valid_jsonl=["a"], test_jsonl=["b"])
    with pytest.raises(DataError, match="none for train"):
        read(none, tmp_path)
    empty = folder_of(tmp_path / "empty", a_csv=["a"])
    with pytest.raises(DataError, match=r"no file of a supported kind: \.txt"):
        read(empty, tmp_path)
    with pytest.raises(DataError, match=r"a\.csv: unsupported kind of file"):
        read(empty / "a.csv", tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder; did you mean 'train.jsonl'"):
        read(some / "trian.jsonl", tmp_path)


def test_fingerprint_is_of_content_and_reading_not_of_place(tmp_path):
    def fingerprint(path, **options):
        return open_source(SourceSpec(str(path), **options), tmp_path).fingerprint

    first = folder_of(tmp_path / "first", a_jsonl=["a"], b_jsonl=["b"])
    second = folder_of(tmp_path / "second", a_jsonl=["a"], b_jsonl=["b"])
    assert fingerprint(first) == fingerprint(second) == fingerprint(second)
    assert fingerprint(first) != fingerprint(first, text_field="other")
    folder_of(second, b_jsonl=["B"])
    assert fingerprint(first) != fingerprint(second)


def test_held_out_by_hash_does_not_depend_on_other_files(tmp_path):
    root = folder_of(tmp_path, a_jsonl=[f"a{i}" for i in range(400)], b_jsonl=[f"b{i}" for i in range(400)])
    spec = SourceSpec(str(root), heldout_fraction=0.1)

    def heldout():
        documents = split_train(open_source(spec, tmp_path), spec, False).stream()
        return {text for split, text in documents if split == "heldout"}

    both = heldout()
    assert 40 < len(both) < 120
    (root / "b.jsonl").unlink()
    assert heldout() == {text for text in both if text[0] == "a"}
    whole = split_evaluation(open_source(spec, tmp_path))
    assert [split for split, _ in whole.stream()] == ["heldout"] * 400


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A tiny TFDS dataset, prepared by a builder that is then forgotten, as a user's prepared folder would be."""
    import tensorflow_datasets as tfds

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")
        RELEASE_NOTES = {"1.2.3": "First."}

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"body": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=3)}
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("train", 30), "test": self._generate_examples("test", 5)}

        def _generate_examples(self, split, count):
            for i in range(count):
                yield i, {"body": f"{split} naïve {i}\r\n", "label": i % 3}

    folder = tmp_path_factory.mktemp("tfds")
    TinyText(data_dir=str(folder), file_format="array_record").download_and_prepare()
    tfds.core.registered._DATASET_REGISTRY.pop("tiny_text", None)
    return str(folder)


def test_tfds(tfds_dir, tmp_path):
    spec = {"tfds_data_dir": tfds_dir, "text_field": "body"}
    found = read({"source": "tfds:tiny_text"} | spec, tmp_path)
    assert sorted(found["train"]) == sorted(f"train naïve {i}\r\n" for i in range(30))
    assert sorted(found["heldout"]) == sorted(f"test naïve {i}\r\n" for i in range(5))
    for words in ("tfds:tiny_text:test", "tfds:tiny_text:1.2.3:test"):
        assert len(read({"source": words} | spec, tmp_path)["train"]) == 5
    assert len(read({"source": "tfds:tiny_text:train[:10]"} | spec, tmp_path)["train"]) == 10
    first, again, part = (
        open_source(SourceSpec(words, **spec), tmp_path).fingerprint
        for words in ("tfds:tiny_text", "tfds:tiny_text", "tfds:tiny_text:test")
    )
    assert first == again != part
    data = TextData("tfds:tiny_text", tokenizer="bytes", sequence_length=16, **spec).open(seed=0, cache_dir=tmp_path)
    assert sorted(data.documents()) == sorted(found["heldout"])
    assert data.identity["data"].startswith("tiny_text/1.2.3@")


def test_tfds_errors(tfds_dir, tmp_path):
    spec = SourceSpec("tfds:tiny_text", tfds_data_dir=tfds_dir)
    with pytest.raises(DataError, match=r"no field 'text'.*Found: body, label"):
        open_source(spec, tmp_path)
    with pytest.raises(DataError, match=r"no field 'bdy'; did you mean 'body'"):
        open_source(dataclasses.replace(spec, text_field="bdy"), tmp_path)
    with pytest.raises(DataError, match=r"record 0: field 'label' must be a string, found int"):
        list(open_source(dataclasses.replace(spec, text_field="label"), tmp_path).read())
    with pytest.raises(ConfigError, match=r"no split 'tain'; did you mean 'train'"):
        open_source(dataclasses.replace(spec, source="tfds:tiny_text:tain"), tmp_path)
    with pytest.raises(ConfigError, match=r"TFDS knows no dataset 'no_such_dataset'.*tfds_data_dir"):
        open_source(dataclasses.replace(spec, source="tfds:no_such_dataset"), tmp_path)
    with pytest.raises(ConfigError, match="expected tfds:NAME"):
        open_source(dataclasses.replace(spec, source="tfds:"), tmp_path)


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    (tmp_path / "my_texts.py").write_text(
        textwrap.dedent("""
        class Own:
            fingerprint = "v1"
            def documents(self, split):
                return {"train": ("a", "b", "c"), "heldout": ["d"]}[split]

        def plain():
            return [f"text {i}" for i in range(200)]

        class TrainOnly:
            fingerprint = "v1"
            def documents(self, split):
                return ["x"] * 200 if split == "train" else None

        wrong = ["fine", 3]
        half = ["fine", "a\\ud800"]
        word = "one string"
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_texts", None)


def test_objects_by_import_path(my_package, tmp_path):
    assert read("my_texts:Own", tmp_path) == {"train": ["a", "b", "c"], "heldout": ["d"]}
    assert len(read("my_texts:plain", tmp_path)["train"]) == 200
    assert not open_source(SourceSpec("my_texts:TrainOnly"), tmp_path).has_heldout
    data = TextData(source="my_texts:plain", tokenizer="bytes", sequence_length=8).open(seed=0, cache_dir=tmp_path)
    assert 0 < len(data.documents()) < 20
    with pytest.raises(DataError, match="train document 1 must be a str, found int"):
        read("my_texts:wrong", tmp_path)
    with pytest.raises(DataError, match="train document 1: the text has half a surrogate pair at character 1"):
        read("my_texts:half", tmp_path)
    with pytest.raises(DataError, match="expected a sequence of str as train documents, found str"):
        read("my_texts:word", tmp_path)
    with pytest.raises(ConfigError, match="has no 'Onw'; did you mean 'Own'"):
        read("my_texts:Onw", tmp_path)
