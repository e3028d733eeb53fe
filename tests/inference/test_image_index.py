"""The index of a folder's images: searched as by a loop, continued wherever it was stopped, true to the files."""

import concurrent.futures
import dataclasses
import fcntl
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from fmjax import search
from fmjax.commands import cli
from fmjax.data.codecs.contact_sheet import LINE, SIDE
from fmjax.data.codecs.image import CroppedImageCodec
from fmjax.data.digits import CODEC, read_digits
from fmjax.errors import DataError, InputError
from fmjax.inference import image_index, index_folder, index_pieces
from fmjax.inference.image_index import index_images, query_vectors
from fmjax.inference.nearest import NEIGHBOURS, nearest
from fmjax.load import Model
from fmjax.small_files import read_json
from tests import two_towers
from tests.classifier import MODEL
from tests.small_models import byte_model

COUNT = 23
DIGITS = [CODEC.decode({"images": image}) for image in read_digits()[0][:COUNT]]


@pytest.fixture
def folder(tmp_path):
    """Images in subfolders, one of them twice."""
    for place, image in enumerate(DIGITS):
        path = tmp_path / "images" / str(place % 3) / f"{place:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        CODEC.write(image, path)
    shutil.copy(tmp_path / "images" / "0" / "00.png", tmp_path / "images" / "copy.png")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"none")
    return tmp_path / "images"


@pytest.fixture
def embedded(monkeypatch):
    """How many images the model has read in each call."""
    counts, embed = [], Model.embed

    def counting(self, *arguments, images, **options):
        counts.append(len(images))
        return embed(self, *arguments, images=images, **options)

    monkeypatch.setattr(Model, "embed", counting)
    return counts


def vectors_by_name(index):
    return {name: vector for names, vector in zip(index.names, index.vectors) for name in names}


def pieces(directory):
    return {path.name: path.read_bytes() for path in sorted((directory / "pieces").iterdir())}


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_it_finds_what_a_loop_over_all_images_finds(folder, tmp_path, neighbours):
    index = index_images(MODEL, folder, tmp_path / "index", piece=5)
    assert len(index) == COUNT + 1 and index.names[0] == ["0/00.png", "copy.png"] and not index.skipped
    alone = MODEL.embed(images=DIGITS).astype(np.float64)
    alone /= np.linalg.norm(alone, axis=1, keepdims=True)
    names = [f"{place % 3}/{place:02}.png" for place in range(COUNT)]
    queries = query_vectors(MODEL, images=[folder / name for name in names[:4]])
    for place, hits in enumerate(index.search(3.0 * queries, top_k=COUNT + 1, neighbours=neighbours)):
        scores = dict(zip(names, alone @ alone[place]))
        scores["copy.png"] = scores["0/00.png"]
        assert [hit.name for hit in hits] == sorted(scores, key=lambda name: (-scores[name], name))
        np.testing.assert_allclose([hit.score for hit in hits], sorted(scores.values(), reverse=True), atol=1e-6)
        assert hits[0].path == folder / hits[0].name and hits[0].score == pytest.approx(1)
        assert index.search(queries[place : place + 1], 2, neighbours)[0] == hits[:2]


def test_files_of_any_size_are_read_as_the_model_reads_them(tmp_path):
    """A codec that cuts out the middle sees each file once, in its own size."""
    codec = CroppedImageCodec(8, 8, 1, shortest_edge=12)
    model = dataclasses.replace(MODEL, codecs=MODEL.codecs | {"image": codec})
    images = [np.random.default_rng(i).integers(0, 256, (30 + 9 * i, 50, 1)).astype(np.uint8) for i in range(3)]
    for number, image in enumerate(images):
        codec.write(image, tmp_path / f"{number}.png")
    index = index_images(model, tmp_path, tmp_path / "index", piece=2)
    np.testing.assert_allclose(index.vectors, model.embed(images=images, normalize=True), atol=1e-6)


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_the_nearest_of_random_vectors(neighbours):
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(300, 16)).astype(np.float32), rng.normal(size=(20, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places, scores = nearest(vectors, queries, 7, neighbours)
    want = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ vectors.T.astype(np.float64)
    np.testing.assert_array_equal(places, np.argsort(-want, axis=1)[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-want, axis=1)[:, :7], atol=1e-6)
    with pytest.raises(InputError, match=r"vectors \[number, 16\] as those of the index, got \(1, 15\)"):
        nearest(vectors, queries[:1, 1:], 1, neighbours)
    with pytest.raises(InputError, match="query 1 has a vector without direction"):
        nearest(vectors, queries[:2] * [[1], [0]], 1, neighbours)


def test_stopped_anywhere_it_goes_on_to_the_same_index(folder, tmp_path, embedded, monkeypatch):
    torn = folder / "1" / "01.png"
    torn.write_bytes(torn.read_bytes()[:40])
    whole = index_images(MODEL, folder, tmp_path / "whole", piece=4)
    want, read = pieces(tmp_path / "whole"), sum(embedded)
    assert len(want) == 6 and read == COUNT - 1

    class Killed(BaseException):
        pass

    def killed_at(module, name, number):
        """The call of this number, from 0, ends the process instead."""
        calls, real = [], getattr(module, name)

        def call(*arguments, **options):
            calls.append(name)
            if len(calls) > number:
                raise Killed
            return real(*arguments, **options)

        return module, name, call

    stops = [(index_pieces.Pieces, "add", number) for number in (0, 1, 5)]
    stops += [(index_pieces, "replacing", 3), (image_index, "write_whole", 0), (index_pieces.Pieces, "tidy", 0)]
    for place, stop in enumerate(stops):
        directory = tmp_path / f"stopped_{place}"
        embedded.clear()
        with monkeypatch.context() as patch:
            patch.setattr(*killed_at(*stop))
            with pytest.raises(Killed):
                index_images(MODEL, folder, directory, piece=4)
        done = sum(embedded)
        (directory / "pieces" / ".00000009.npz.partial-ab.npz").write_bytes(b"half of a pie")
        (directory / ".files.json.partial-ab.json").write_bytes(b"{")
        found = index_images(MODEL, folder, directory, piece=4)
        assert pieces(directory) == want and found.names == whole.names and found.skipped == whole.skipped
        np.testing.assert_array_equal(found.vectors, whole.vectors)
        # Of what was written nothing is read again, and at most one piece is not written when it was read.
        assert read <= sum(embedded) <= read + 4 and (done == 0 or done >= 4)
        assert not list(directory.glob(".*"))


def test_new_changed_renamed_and_removed_files(folder, tmp_path, embedded):
    first = vectors_by_name(index_images(MODEL, folder, tmp_path / "index", piece=8))
    embedded.clear()
    assert index_images(MODEL, folder, tmp_path / "index", piece=8).names and sum(embedded) == 0
    CODEC.write(255 - DIGITS[3], folder / "0" / "03.png")  # changed
    CODEC.write(255 - DIGITS[4], folder / "new.png")
    (folder / "2" / "05.png").rename(folder / "renamed.png")
    (folder / "0" / "06.png").unlink()
    index = index_images(MODEL, folder, tmp_path / "index", piece=8)
    assert sum(embedded) == 2
    found = vectors_by_name(index)
    assert set(found) == set(first) - {"2/05.png", "0/06.png"} | {"new.png", "renamed.png"}
    np.testing.assert_array_equal(found["renamed.png"], first["2/05.png"])
    fresh = vectors_by_name(index_images(MODEL, folder, tmp_path / "fresh", piece=8))
    for name, vector in found.items():
        np.testing.assert_allclose(vector, fresh[name], atol=1e-6)
    assert np.abs(found["0/03.png"] - first["0/03.png"]).max() > 1e-3


@pytest.mark.parametrize("settled", [-1.0, index_folder.SETTLED])
def test_a_file_written_over_with_its_old_time_is_seen(folder, tmp_path, embedded, monkeypatch, settled):
    """The same size, and a modification time that is set back; by its stamp, or because it was written just now."""
    monkeypatch.setattr(index_folder, "SETTLED", settled)
    path = folder / "plain.bmp"
    for value in (10, 200):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
        os.utime(path, ns=(10**18, 10**18))
        index_images(MODEL, folder, tmp_path / "index")
        assert embedded.pop() == (COUNT + 1 if value == 10 else 1)
        embedded.clear()


def test_files_that_stayed_are_not_opened_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(index_folder, "SETTLED", -1.0)
    first = index_images(MODEL, folder, tmp_path / "index")
    opened = []
    monkeypatch.setattr(index_folder.hashlib, "file_digest", lambda *arguments: opened.append(arguments))
    second = index_images(MODEL, folder, tmp_path / "index")
    assert not opened and second.names == first.names


def test_many_small_pieces_become_few(folder, tmp_path, embedded):
    names = sorted(path for path in folder.rglob("*.png") if path.name[0].isdigit())
    aside = tmp_path / "aside"
    aside.mkdir()
    for path in names[1:]:
        path.rename(aside / path.name)
    for path in names[1:]:
        (aside / path.name).rename(path)
        index = index_images(MODEL, folder, tmp_path / "index", piece=10)
        assert len(pieces(tmp_path / "index")) <= index_pieces.MANY + 3
    fresh = vectors_by_name(index_images(MODEL, folder, tmp_path / "fresh", piece=10))
    for name, vector in vectors_by_name(index).items():
        np.testing.assert_allclose(vector, fresh[name], atol=1e-6)
    for path in names[1:]:
        path.unlink()
    assert len(index_images(MODEL, folder, tmp_path / "index", piece=10)) == 2
    assert len(pieces(tmp_path / "index")) <= 2


def test_bad_images_are_counted_and_named_or_refused(folder, tmp_path, embedded, caplog):
    (folder / "torn.png").write_bytes((folder / "0" / "03.png").read_bytes()[:50])
    (folder / "none.jpg").write_bytes(b"this is a text")
    (folder / "empty.webp").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "colours.bmp")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "deep.png")
    (folder / "away.png").symlink_to(folder / "nowhere.png")  # is no file
    bad = {"torn.png", "none.jpg", "empty.webp", "colours.bmp", "deep.png"}
    for _ in range(2):
        index = index_images(MODEL, folder, tmp_path / "index", piece=5)
        assert set(index.skipped) == bad and len(index) == COUNT + 1
        assert (
            "left out: 5 images cannot be read: colours.bmp: it is in colour, and images here are grey" in caplog.text
        )
        caplog.clear()
    assert sum(embedded) == COUNT
    assert read_json(tmp_path / "index" / "files.json")["deep.png"]["bad"].startswith("it has more than 8 bits")
    for directory in ("index", "other"):
        with pytest.raises(DataError, match="images cannot be read: .*: it "):
            index_images(MODEL, folder, tmp_path / directory, bad_images="refuse")
    only = tmp_path / "only"
    only.mkdir()
    (folder / "torn.png").rename(only / "torn.png")
    with pytest.raises(DataError, match="1 images cannot be read: torn.png: it cannot be read as an image"):
        index_images(MODEL, only, tmp_path / "third")
    with pytest.raises(InputError, match="bad_images='ignore' is not known"):
        index_images(MODEL, folder, tmp_path / "index", bad_images="ignore")


def test_an_index_is_of_one_model_and_one_folder(folder, tmp_path):
    directory = tmp_path / "index"
    index_images(MODEL, folder, directory)
    other = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x + 1, MODEL.params), source="other")
    with pytest.raises(InputError, match="is of the model .* from memory, and not of .* from other .*; give another"):
        index_images(other, folder, directory)
    assert image_index.default_directory(MODEL, folder, tmp_path) != image_index.default_directory(
        other, folder, tmp_path
    )
    shutil.copytree(folder, tmp_path / "images_2")
    with pytest.raises(InputError, match="is of the folder .*images, and not of .*images_2"):
        index_images(MODEL, tmp_path / "images_2", directory)
    with pytest.raises(InputError, match="is no index: it has 0, 1, 2"):
        index_images(MODEL, folder, folder)
    next((directory / "pieces").glob("*.npz")).write_bytes(b"PK")
    with pytest.raises(DataError, match="00000000.npz' of an index is damaged"):
        index_images(MODEL, folder, directory)
    with pytest.raises(InputError, match="GPT.* reads no images"):
        index_images(byte_model(), folder, tmp_path / "texts")


def test_a_second_process_waits_for_the_first(folder, tmp_path, caplog):
    index_images(MODEL, folder, tmp_path / "index")
    with (tmp_path / "index" / "lock").open("a") as file, concurrent.futures.ThreadPoolExecutor() as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = pool.submit(index_images, MODEL, folder, tmp_path / "index")
        with pytest.raises(concurrent.futures.TimeoutError):
            second.result(timeout=0.5)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert len(second.result(timeout=60)) == COUNT + 1
    assert "waiting for another process that has the index" in caplog.text


def test_an_interrupt_says_that_the_work_is_kept(folder, tmp_path, monkeypatch, caplog):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    MODEL.save(tmp_path / "model")
    monkeypatch.setattr(index_pieces.Pieces, "tidy", interrupted)
    given = [f"--model={tmp_path / 'model'}", f"--images={folder}", f"--index={tmp_path / 'index'}"]
    assert cli.run(search.main, [*given, f"--query_image={folder / '1' / '01.png'}"]) == 130
    assert "what was read is kept in" in caplog.text and len(pieces(tmp_path / "index")) == 1


def test_images_are_found_by_words(folder, tmp_path, capsys):
    index = index_images(two_towers.MODEL, folder, tmp_path / "by_words", piece=7)
    texts = ["a small digit", "seven"]
    images = two_towers.MODEL.embed(images=DIGITS).astype(np.float64)
    for text, hits in zip(texts, index.search(query_vectors(two_towers.MODEL, texts=texts), top_k=COUNT)):
        scores = images @ two_towers.MODEL.embed(texts=[text])[0]
        places = [int(hit.name[-6:-4]) for hit in hits if hit.name != "copy.png"]
        assert places[:5] == np.argsort(-scores)[:5].tolist()
        np.testing.assert_allclose([hit.score for hit in hits][:1], [scores.max()], atol=1e-5)
    two_towers.MODEL.save(tmp_path / "model")
    given = [f"--model={tmp_path / 'model'}", f"--images={folder}", f"--index={tmp_path / 'index'}"]
    assert cli.run(search.main, [*given, f"--query={texts[1]}", "--top_k=3", "--neighbours=faiss"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[2:]] == [hit.name for hit in hits[:3]]
    assert cli.run(search.main, [*given, f"--query={'long ' * 50}"]) == 2
    assert "48" in capsys.readouterr().err


def test_the_command(folder, tmp_path, capsys):
    MODEL.save(tmp_path / "model")
    given = [f"--model={tmp_path / 'model'}", f"--images={folder}", f"--index={tmp_path / 'index'}"]
    sheet = tmp_path / "found.png"
    query = f"--query_image={folder / '1' / '01.png'}"
    assert cli.run(search.main, [*given, query, "--top_k=4", f"--output={sheet}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "image"] and lines[2].split() == ["1", "1.0000", "1/01.png"]
    assert len(lines) == 7 and lines[-1] == f"sheet: {sheet}"
    with Image.open(sheet) as file:
        cells = np.asarray(file)
    assert cells.shape == (2 * (SIDE + LINE) + 1, 3 * SIDE + 2, 3)
    # What was looked for stands first, enlarged by whole pixels, and is the first that was found.
    times = SIDE // 8
    np.testing.assert_array_equal(cells[:SIDE:times, :SIDE:times, 0][:8, :8], DIGITS[1][..., 0])
    np.testing.assert_array_equal(cells[:SIDE, :SIDE], cells[:SIDE, SIDE + 1 : 2 * SIDE + 1])
    assert (cells[SIDE : SIDE + LINE, :SIDE] < 128).any()  # its caption
    for arguments, message in (
        ([*given], "give --query=TEXT or --query_image=FILE: one of them"),
        ([*given, query, "--query=red"], "not both"),
        ([*given, "--query= "], "--query is empty"),
        ([*given, "--query=a red circle"], "has no vectors of texts beside those of images"),
        ([*given, f"--query_image={tmp_path / 'none.png'}"], "none.png' cannot be read as an image"),
        ([*given, query, "--output=found.jpg"], "the sheet is a PNG; give FILE.png"),
        ([*given, query, f"--output={tmp_path / 'nowhere' / 'a.png'}"], "there is no folder"),
        ([given[0], f"--images={tmp_path / 'nowhere'}", query], "nowhere' does not exist; expected one of images"),
        ([given[0], f"--images={tmp_path / 'model'}", query], "has no image (.png"),
        ([*given, query, "--topk=3"], "unknown flag '--topk'; did you mean '--top_k'"),
        ([*given, query, "--neighbours=annoy"], "invalid choice: 'annoy'"),
    ):
        assert cli.run(search.main, arguments) == 2, arguments
        assert message in capsys.readouterr().err
