"""The world of shapes: what captions claim is seen in the pixels, and what is held out is never trained on."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import ndimage

from fmjax.data.codecs.image import ImageCodec
from fmjax.data.shapes.boxes import CAPTION, PLACES, TASKS, box, every_length, overlap, read_box
from fmjax.data.shapes.builder import ShapesConfig, ShapesWorld
from fmjax.data.shapes.captions import NUM_TEMPLATES, claim_of, is_true_of, singular, wordings
from fmjax.data.shapes.data import Shapes
from fmjax.data.shapes.drawing import RADII, draw
from fmjax.data.shapes.examples import Scenes
from fmjax.data.shapes.scenes import (
    COLOURS,
    NUM_CLAIMS,
    SHAPES,
    Look,
    Thing,
    World,
    combinations,
    diagonal,
    is_true,
    light,
)
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.shuffle import Draws
from fmjax.errors import ConfigError, DataError

SIZE = 96
AREAS = {  # in units of the circle's radius squared: closed forms
    "circle": np.pi, "ring": np.pi * 0.7, "square": 1.4**2, "diamond": 2.0, "triangle": 3 * np.sqrt(3) / 4,
    "cross": 2 * 1.9 * 0.5 - 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = Shapes(image_size=16, num_examples=200, eval_examples=60)
    return config.open(seed=0, cache_dir=tmp_path_factory.mktemp("cache"))


def seen(picture) -> list[tuple[str, str, str, int, int]]:
    """(size, colour, shape, row, column) of what a picture shows, by its pixels alone: colours of whole pixels, cells
    of centres of mass, and the size and shape whose mask is nearest."""
    found = []
    for colour in COLOURS:
        share = picture.astype(float) @ light(colour) / (255 * light(colour) @ light(colour))
        whole = np.abs(picture / 255 - light(colour)).max(axis=-1) < 0.01
        components, count = ndimage.label(ndimage.binary_dilation(whole, np.ones((3, 3)), iterations=2))
        for number in range(1, count + 1):
            mask = np.where(components == number, share, 0)
            top, left = (int(edge.min()) for edge in np.nonzero(mask > 0.02))
            middle = ndimage.center_of_mass(mask)
            candidates = []
            for size, shape in itertools.product(RADII, SHAPES):
                other = draw((Thing(Look(size, "white", shape), (1, 1)),), SIZE)[..., 0] / 255
                moved = ndimage.shift(other, np.subtract(middle, ndimage.center_of_mass(other)), order=1)
                candidates.append((np.abs(moved - mask).sum(), size, shape))
            _, size, shape = min(candidates)
            found.append((size, colour, shape, int(middle[0] / SIZE * 3), int(middle[1] / SIZE * 3)))
    return sorted(found)


def test_captions_are_true_of_the_pixels_and_those_of_other_scenes_by_what_the_pixels_show():
    world = World(heldout=diagonal())
    examples = [world.example("train", index) for index in range(45)]
    shown = []
    for scene, _ in examples:
        things = seen(draw(scene, SIZE))
        assert things == sorted((t.look.size, t.look.colour, t.look.shape, *t.cell) for t in scene)
        shown.append(things)
    truths = 0
    for (_, claim), (things, (scene, own)) in itertools.product(examples, zip(shown, examples)):
        caption = wordings(claim)[claim.number % NUM_TEMPLATES]
        match = [[t for t in things if t[:3] == (look.size, look.colour, look.shape)] for look in claim.looks]
        if claim.kind == "one":
            expected = any(t[3:] == claim.cell for t in match[0])
        elif claim.kind == "many":
            expected = len(match[0]) == claim.count
        else:
            axis = 3 if claim.relation == "above" else 4
            expected = any(a[axis] < b[axis] for a, b in itertools.product(*match))
        assert is_true_of(caption, scene) == expected, (caption, scene)
        assert expected or claim != own
        truths += expected
    assert 45 <= truths < 60


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_area_and_lies_in_its_circle(shape):
    for size, radius in RADII.items():
        picture = draw((Thing(Look(size, "white", shape), (1, 1), (0.013, -0.021)),), 200)
        covered = picture[..., 0].sum() / 255 / 200**2
        assert covered == pytest.approx(AREAS[shape] * radius**2, rel=0.01)
        y, x = np.nonzero(picture[..., 0])
        distance = np.hypot((y + 0.5) / 200 - 0.513, (x + 0.5) / 200 - 0.479)
        assert distance.max() < radius + 1 / 200
    assert set(np.unique(picture)) > {0, 255} and len(np.unique(picture)) <= 17  # edges in sixteenths


def test_every_wording_means_its_claim_and_claims_have_numbers_of_their_own():
    numbers = {}
    worlds = [World(says_size=a, says_place=b) for a, b in itertools.product((True, False), repeat=2)]
    for world, index in itertools.product(worlds, range(150)):
        scene, claim = world.example("train", index)
        assert is_true(claim, scene) and 0 <= claim.number < NUM_CLAIMS
        assert numbers.setdefault(claim.number, claim) == claim
        captions = wordings(claim)
        assert len(set(captions)) == (2 if claim.kind == "relation" else 1) * NUM_TEMPLATES
        assert {claim_of(caption) for caption in captions} == {claim}
    assert len(numbers) > 300
    scene = (Thing(Look("small", "orange", "ring"), (0, 2)),)
    assert is_true_of("there is an orange ring at the top right", scene)
    assert not is_true_of("an orange ring at the top left", scene)
    for caption in ("a red dog", "a orange ring", "two rings", ""):
        with pytest.raises(DataError, match="no caption of the world of shapes"):
            claim_of(caption)


def test_what_is_held_out_is_not_trained_on(data):
    world = World(heldout=diagonal())
    for split in ("train", "heldout", "templates", "combinations"):
        for index in range(80):
            new = combinations(world.example(split, index)[0]) & set(diagonal())
            assert bool(new) == (split == "combinations")
    texts = {name: data.documents(name) for name in ("heldout", "templates", "combinations")}
    long = {name: [t.startswith("this is a picture where") for t in found] for name, found in texts.items()}
    assert all(long["templates"]) and not any(long["heldout"] + long["combinations"])
    decode = data.tokenizer.decode
    trained = [decode(data.train[i]["tokens"][data.train[i]["segment_ids"] == 1].tolist()) for i in range(100)]
    assert not any(t.startswith("this is a picture where") for t in trained) and len(set(trained)) > 80
    words = {word for text in [*trained, *texts["heldout"]] for word in text.split()}
    assert {word for text in texts["templates"] for word in text.split()} - words == {"where"}


def test_rows_are_a_pure_function_of_seed_and_index(data, tmp_path):
    config = Shapes(image_size=16, num_examples=200, eval_examples=60)
    again, other = (config.open(seed=seed, cache_dir=tmp_path) for seed in (0, 1))
    assert again.identity == data.identity
    for index in (301, 7, 0):
        row = data.train[index]
        for name, value in again.train[index].items():
            np.testing.assert_array_equal(value, row[name])
    assert {name: (value.shape, value.dtype.name) for name, value in row.items()} == {
        "images": ((16, 16, 3), "float32"), "tokens": ((32,), "int32"), "segment_ids": ((32,), "int32"),
        "labels": ((), "int32"), "loss_weights": ((), "float32"),
    }  # fmt: skip
    assert any((other.train[i]["tokens"] != data.train[i]["tokens"]).any() for i in range(3))
    # An epoch has each scene once; the next words some of them otherwise.
    epochs = [[data.train[e * 200 + i] for i in range(200)] for e in (0, 1)]
    images = [sorted(row["images"].tobytes() for row in rows) for rows in epochs]
    assert images[0] == images[1] and len(set(images[0])) == 200
    worded = [{row["images"].tobytes(): row["tokens"].tobytes() for row in rows} for rows in epochs]
    assert 80 < sum(worded[0][key] != worded[1][key] for key in worded[0]) < 200
    assert {len(rows) for rows in data.evaluation.values()} == {60}
    assert Shapes(image_size=16, world_seed=1).world.example("train", 0) != config.world.example("train", 0)


def test_the_tfds_dataset_has_the_same_scenes(tmp_path):
    size = ShapesConfig(name="20px", image_size=20, num_examples=12, eval_examples=5)
    builder = ShapesWorld(config=size, data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train")
    known = Scenes(World(heldout=diagonal()), 20, "train", 12, range(NUM_TEMPLATES - 1), all_wordings=True)
    pictures = {known.image(i).tobytes(): i for i in range(12)}
    found = [pictures.pop(source[place]["image"].tobytes()) for place in range(12)]
    for place, index in enumerate(found):
        assert source[place]["label"] == known.label(index)
        assert [text.decode() for text in source[place]["captions"]] == known.captions(index)
    assert len(builder.as_data_source("combinations")) == 5
    assert {"shapes_world/64px", "shapes_world/224px"} <= {
        f"shapes_world/{c.name}" for c in ShapesWorld.BUILDER_CONFIGS
    }


def test_pictures_of_classes(tmp_path):
    config = Shapes(image_size=24, num_examples=30, eval_examples=8, kinds=("one", "many"), rows="combination")
    data = config.open(seed=0, cache_dir=tmp_path)
    assert set(data.evaluation) == {"heldout", "combinations"} and data.model_fields["num_classes"] == 48
    names = data.codecs["label"].names
    new = {names[int(row["labels"])] for row in data.evaluation["combinations"]}
    old = {names[int(data.train[i]["labels"])] for i in range(30)}
    assert new <= {" ".join(pair) for pair in diagonal()} and not old & {" ".join(pair) for pair in diagonal()}
    row = data.train[3]
    colour = light(names[int(row["labels"])].split()[0])
    brightest = ImageCodec(24, 24).decode(row).reshape(-1, 3)
    assert (np.abs(brightest / 255 - colour).max(axis=-1) < 0.01).any() and set(row) == {
        "images",
        "labels",
        "loss_weights",
    }


def test_what_no_world_can_be_is_said():
    for fields, message in [
        ({"heldout_combinations": ("red dog",)}, "heldout_combinations has 'red dog'.*A combination is a colour"),
        ({"heldout_combinations": tuple(f"red {shape}" for shape in SHAPES)}, "leave nothing 'red' to train on"),
        ({"heldout_templates": 5}, "heldout_templates = 5 must be from 0 to 4"),
        ({"kinds": ("two",)}, "data.kinds='two' is not known"),
        ({"kinds": ()}, "data.kinds='' is not known"),
        ({"rows": "shape"}, "scenes of the kind 'relation' show two things"),
        ({"image_size": 0}, "data.image_size=0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Shapes(**fields)
    with pytest.raises(DataError, match=r"of \d+ captions are longer than data.sequence_length = 20"):
        Shapes(num_examples=5, eval_examples=5, sequence_length=20, tokenizer="bytes").open(seed=0, cache_dir="unused")


@pytest.mark.parametrize("fields", [{}, {"says_size": False, "says_place": False}, {"kinds": ("many",)}])
def test_all_that_may_be_said_of_training_scenes(fields):
    world = World(heldout=diagonal(), **fields)
    numbers = [claim.number for claim in world.claims()]
    assert len(numbers) == len(set(numbers))
    assert {world.example("train", i)[1].number for i in range(300)} <= set(numbers)
    looks = 42 * (1 if fields.get("says_size") is False else 2)
    counts = {"one": looks * (1 if "says_place" in fields else 9), "many": 3 * looks, "relation": 2 * looks**2}
    assert len(numbers) == sum(counts[kind] for kind in world.kinds)


def test_the_longest_wording_of_any_scene_decides_whether_captions_are_too_long(tmp_path):
    fields = dict(image_size=8, num_examples=9, eval_examples=1, heldout_templates=0, kinds=("one",), tokenizer="bytes")
    world, known = Shapes(**fields).world, range(5)
    texts = [text for i in range(9) for text in wordings(world.example("train", i)[1], known)]
    lengths = [len(ByteTokenizer().encode_pair(text)[0]) for text in set(texts)]
    most = max(lengths)
    every = [text for claim in world.claims() for text in wordings(claim, known)]
    assert sorted(Scenes(world, 8, "train", NUM_CLAIMS, known).all_captions()) == sorted(every)
    assert set(Scenes(world, 8, "train", 9, known).all_captions()) == set(texts)
    with pytest.raises(DataError, match=f"{lengths.count(most)} of {len(lengths) + 2} captions are longer"):
        Shapes(**fields, sequence_length=most - 1).open(seed=0, cache_dir=tmp_path)
    Shapes(**fields, sequence_length=most).open(seed=0, cache_dir=tmp_path)


def test_what_is_written_tells_boxes_that_hold_what_they_tell(tmp_path):
    """The box of a told thing has its colour inside and holds all of its shape; texts come back from rows."""
    scenes, tasks = Scenes(World(), SIZE, "train", 300, range(3)), []
    for index in range(len(scenes)):
        text = scenes.written(index, scenes.captions(index)[0], Draws("test", index))
        task, _, rest = text.partition(": ")
        tasks.append(task)
        scene, _ = scenes.scene(index)
        if task == CAPTION:
            assert is_true_of(rest, scene)
            continue
        found, words = read_box(rest), rest.strip("0123456789: ")
        (thing,) = [thing for thing in scene if singular(thing.look) == words]
        assert found == box(thing) and overlap(found, box(thing)) == 1
        top, left, bottom, right = (round(edge * SIZE / PLACES) for edge in found)
        alone = draw((thing,), SIZE).max(-1) > 0
        seen = np.argwhere(alone)
        assert np.abs([*seen.min(0), *(seen.max(0) + 1)] - np.array([top, left, bottom, right])).max() < 0.1 * SIZE
        assert alone[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2].sum() == alone.sum()
    assert set(tasks) == set(TASKS) and tasks.count(CAPTION) < 0.7 * len(tasks)
    silent = Scenes(World(says_size=False), SIZE, "train", 300, range(3))
    texts = [silent.written(i, silent.captions(i)[0], Draws("test", i)) for i in range(300)]
    assert not [text for text in texts if "small" in text or "large" in text]
    longest = max(map(len, every_length(scenes.all_captions())))
    assert max(len(scenes.written(i, scenes.captions(i)[0], Draws("test", i))) for i in range(300)) <= longest
    assert overlap((0, 0, 10, 10), (0, 5, 10, 15)) == pytest.approx(1 / 3) and read_box("no 1 2 3") is None
    data = Shapes(
        image_size=16, num_examples=50, eval_examples=5, written_length=48, tokenizer="bytes", sequence_length=99
    )
    with pytest.raises(DataError, match="longer than data.written_length = 48"):
        data.open(seed=0, cache_dir=tmp_path)
    opened = dataclasses.replace(data, written_length=90).open(seed=0, cache_dir=tmp_path)
    rows = [opened.train[i] for i in range(20)]
    texts = [opened.tokenizer.decode(row["written"][row["written_ids"] == 1].tolist()) for row in rows]
    assert {text.partition(":")[0] for text in texts} == set(TASKS)
    np.testing.assert_array_equal(opened.train[7]["written"], rows[7]["written"])
