"""Robustness of image tasks: what each change does to pixels, and the drop that the runner reports."""

import dataclasses
import functools

import numpy as np
import pytest

from fmjax.data.codecs.image import CroppedImageCodec, ResizedImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.codecs.media import Media
from fmjax.data.digits import CODEC
from fmjax.errors import DataError, InputError
from fmjax.tasks import image_changes
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.image_changes import CHANGES, ImageChange
from fmjax.tasks.perturbation import Perturbed
from fmjax.tasks.protocol import Apply, TaskContext
from fmjax.tasks.runner import run_tasks
from tests.classifier import MODEL
from tests.small_models import byte_model
from tests.tasks.quiz import Quiz

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 24, 3)).astype(np.uint8)


def test_noise_has_its_strength():
    grey = np.full((100, 100, 3), 128, np.uint8)
    difference = ImageChange("noise", 3)(grey).astype(float) - 128
    assert difference.std() / 255 == pytest.approx(image_changes.NOISE, rel=0.02) and abs(difference.mean()) < 1.5
    assert ImageChange("noise", 3)(grey * 0 + 255).max() == 255


def test_blur_is_a_convolution_with_a_gaussian():
    sigma = max(32 / 64, 0.7)  # of the mean side
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(IMAGE.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    want = np.zeros(IMAGE.shape)
    for i, down in enumerate(weights):
        for j, right in enumerate(weights):
            want += down * right * padded[i : i + 40, j : j + 24]
    np.testing.assert_allclose(ImageChange("blur", 0)(IMAGE), want, atol=0.51)
    large = np.zeros((256, 256, 1), np.uint8)
    large[128, 128] = 255
    assert (ImageChange("blur", 0)(large) > 0).sum() > 25  # wider in a larger image


def test_occlusion_covers_a_rectangle_inside():
    places = set()
    for seed in range(20):
        covered = ImageChange("occlusion", seed)(IMAGE)
        rows, columns = np.nonzero((covered != IMAGE).any(-1))
        assert rows.max() - rows.min() < 16 and columns.max() - columns.min() < 10
        inside = covered[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (inside == 128).mean() > 0.99
        places.add((rows.min(), columns.min()))
    assert len(places) > 10


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_a_function_of_image_and_seed(name):
    before = IMAGE.copy()
    found = ImageChange(name, 1)(IMAGE)
    assert found.dtype == np.uint8 and found.shape == IMAGE.shape and (found != IMAGE).any()
    np.testing.assert_array_equal(found, ImageChange(name, 1)(before))
    np.testing.assert_array_equal(IMAGE, before)
    assert ImageChange(name, 1)(IMAGE[..., 0]).shape == (40, 24, 1)
    with pytest.raises(DataError, match="changes images uint8"):
        ImageChange(name, 1)(IMAGE.astype(np.float32))


def test_changed_media_are_other_media(tmp_path):
    image = IMAGE[:8, :8, :1]
    changes = None, ImageChange("noise", 1), ImageChange("noise", 1)
    plain, same, again = (Media("image", image, change=change) for change in changes)
    assert plain != same and same == again and same != Media("image", image, change=ImageChange("noise", 2))
    np.testing.assert_array_equal(same.encode(CODEC)["images"], CODEC.encode(ImageChange("noise", 1)(image))["images"])
    # A file is changed when it has the model's size.
    path = tmp_path / "large.png"
    CODEC.write(np.kron(image[..., 0], np.ones((4, 4), np.uint8))[..., None], path)
    small = CODEC.read(path)
    found = Media("image", path, change=ImageChange("blur", 0)).encode(CODEC)["images"]
    np.testing.assert_array_equal(found, CODEC.encode(ImageChange("blur", 0)(small))["images"])


@pytest.mark.parametrize("shape", [(8, 8), (500, 900)])
@pytest.mark.parametrize("make", [ResizedImageCodec, functools.partial(CroppedImageCodec, shortest_edge=72)])
def test_what_a_model_sees_is_changed_whatever_the_size(make, shape, tmp_path):
    """Noise has its strength beside files and arrays of any size, and an occlusion lies in what is cut out."""
    codec, grey = make(64, 64, 3, resample="bicubic"), np.full((*shape, 3), 128, np.uint8)
    codec.write(grey, tmp_path / "grey.png")
    for value in (grey, tmp_path / "grey.png"):
        seen = codec.decode(Media("image", value, change=ImageChange("noise", 1)).encode(codec)).astype(float)
        assert (seen - 128).std() / 255 == pytest.approx(image_changes.NOISE, rel=0.05)
        assert abs(np.corrcoef(seen[:, 1:].ravel(), seen[:, :-1].ravel())[0, 1]) < 0.05
        white = Media("image", value, change=_White()).encode(codec)
        assert codec.decode(white).shape == codec.shape and (codec.decode(white) == 255).all()


@dataclasses.dataclass(frozen=True)
class _White:
    def __call__(self, image):
        return np.full_like(image, 255)


def test_values_without_a_size_of_the_model_are_not_changed():
    with pytest.raises(DataError, match="LabelCodec has no `fitted`"):
        Media("label", np.int32(1), change=_White()).encode(LabelCodec(3))


@pytest.mark.parametrize("name", CHANGES)
def test_the_drop_is_paired_and_the_same_every_time(name):
    task = f"digits+{name}"
    one = run_tasks(MODEL, [task], limit=60)[task]
    plain = run_tasks(MODEL, ["digits"], limit=60)["digits"].metrics
    assert one.metrics["acc"] == plain["acc"] and one.metrics["changed"] == 1
    assert one.metrics["acc_drop"] == pytest.approx(plain["acc"] - one.metrics["acc_perturbed"])
    assert 0 < one.metrics["acc_drop_stderr"] < 1 and "words_changed" not in one.metrics
    few = run_tasks(MODEL, [task], limit=7)[task]
    assert [s["requests"] for s in few.samples] == [s["requests"] for s in one.samples[:7]]
    request = one.samples[0]["requests"][1]["inputs"]
    assert (
        request["name"].endswith(f"+{name}")
        and request["fingerprint"] != one.samples[0]["requests"][0]["inputs"]["fingerprint"]
    )


def test_a_probe_is_trained_on_images_as_they_are():
    found = run_tasks(MODEL, ["digits_probe:40", "digits_probe:40+noise"], limit=30)
    assert found["digits_probe:40+noise"].metrics["acc"] == found["digits_probe:40"].metrics["acc"]
    task = get_task("digits_probe:40+noise")
    for both in task.documents(TaskContext())[:3]:
        plain, changed = both.requests
        assert isinstance(changed[0], Apply) and plain[0] != changed[0] and changed[0].inputs.change.name == "noise"


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="task quiz.noise: quiz asks about no image, which noise changes"):
        run_tasks(byte_model(), [Perturbed(Quiz(), "noise")])
    with pytest.raises(InputError, match="only what is scored or generated after a text can be perturbed"):
        run_tasks(MODEL, ["digits+typos"], limit=3)
    with pytest.raises(InputError, match="trains on its texts; perturb a prompted task"):
        get_task("digits_probe+typos")
    with pytest.raises(InputError, match="no perturbation 'nose'; did you mean 'noise'"):
        get_task("digits+nose")
