"""Where an answer about an image comes from: attention recomputed by hand, covered patches by a loop, the pictures."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from fmjax import evaluate
from fmjax.commands import cli
from fmjax.config import build
from fmjax.data.codecs.contact_sheet import LINE, SIDE
from fmjax.data.codecs.media import Media
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.patches import attention_maps, overlaid, patch_attribution
from fmjax.layers.transformer import unstack_layers
from fmjax.load import Model
from fmjax.models import MODELS
from fmjax.models.conv_encoder import ConvEncoder
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.pictures import Pictures
from fmjax.tasks.protocol import Apply, Score
from tests import two_towers
from tests.classifier import IMAGES, MODEL, MODULE, logits_of
from tests.quick_keys import quick_key
from tests.small_models import applied, byte_model


def test_attention_is_the_softmax_of_the_first_layers_products():
    found = attention_maps(MODEL, IMAGES, batch_size=3)
    assert found.shape == (7, 2, 4, 2, 2) and found.dtype == np.float32
    arrays = np.stack([MODEL.codecs["image"].encode(image)["images"] for image in IMAGES])
    _, state = applied(MODULE, {"params": MODEL.params}, arrays, method="hidden", mutable="reads")
    x = np.asarray(state["reads"]["embedded"], np.float64)
    block = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), MODEL.params["stack"]["blocks"])
    norm = block["attention_norm"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + MODULE.norm_eps)
    x = x * norm["scale"] + norm["bias"]
    heads = [x @ block["attention"][n]["kernel"] + block["attention"][n]["bias"] for n in ("query", "key")]
    for image in range(7):
        for head in range(4):
            q, k = (one[image, :, head * 4 : head * 4 + 4] for one in heads)
            logits = q[0] @ k.T / 2
            shares = np.exp(logits - logits.max())
            want = (shares / shares.sum())[1:]
            np.testing.assert_allclose(found[image, 0, head].ravel(), want, atol=1e-5)


def test_attention_of_the_image_tower_of_two():
    tower = Model(two_towers.MODULE.vision, two_towers.MODEL.params["vision"], codecs=two_towers.MODEL.codecs)
    found = attention_maps(two_towers.MODEL, IMAGES)
    np.testing.assert_allclose(found, attention_maps(tower, IMAGES), atol=1e-6)
    assert found.shape == (7, 1, 2, 2, 2) and (found.sum((-1, -2)) < 1).all()
    for model in (byte_model(), Model(ConvEncoder(hidden_size=4, image_size=8, num_channels=1), {})):
        with pytest.raises(InputError, match="attends to no patches of images"):
            attention_maps(model, IMAGES)


def test_a_pooling_heads_attention_is_none_of_the_stack():
    """SigLIP; and layers that are not scanned give the same."""
    vision = {"use_class_token": False, "pooling": "attention"}
    section = {**two_towers.SECTION, "name": "siglip", "vision": {**two_towers.SECTION["vision"], **vision}}
    module, zeros = build(section, MODELS), lambda of: {k: np.zeros(v.shape, v.dtype) for k, v in of.example().items()}
    params = nn.unbox(jax.jit(module.init)(quick_key(0), **zeros(module))["params"])
    pooled = Model(module, params, {"model": section}, ByteTokenizer(), codecs=MODEL.codecs)
    found = attention_maps(pooled, IMAGES)
    # The mean of what four patches attend to, and nothing else is there.
    np.testing.assert_allclose(found.sum((-1, -2)), 1, atol=1e-5)
    tower = module.vision.clone(pooling="mean", parent=None)
    rest = {name: part for name, part in params["vision"].items() if name != "attention_pooling"}
    np.testing.assert_allclose(found, attention_maps(Model(tower, rest, codecs=MODEL.codecs), IMAGES), atol=1e-6)
    apart = Model(tower.clone(scan_layers=False), unstack_layers(rest), codecs=MODEL.codecs)
    np.testing.assert_allclose(found, attention_maps(apart, IMAGES), atol=1e-6)


def test_what_covering_a_patch_costs_is_found_by_a_loop():
    labels = ["3", "7"]
    found = patch_attribution(MODEL, IMAGES[:2], labels, patches=4)
    logs = lambda image: jax.nn.log_softmax(logits_of([image]))[0]
    for number, label in enumerate(labels):
        for row in range(4):
            for column in range(4):
                covered = IMAGES[number].copy()
                covered[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 128
                want = logs(IMAGES[number])[int(label)] - logs(covered)[int(label)]
                assert found[number, row, column] == pytest.approx(float(want), abs=2e-3)

    def classify(images):
        """Sees nothing but one pixel."""
        shares = [float(one.value[1, 6, 0]) / 255 for one in images]
        return [[("light", p), ("dark", 1 - p)] for p in shares]

    image = np.full((8, 8, 1), 200, np.uint8)
    (heat,) = patch_attribution(MODEL, [Media("image", image)], ["light"], patches=8, classify=classify)
    assert heat[1, 6] == pytest.approx(np.log(200 / 128), abs=1e-5)
    heat[1, 6] = 0
    assert not heat.any()
    with pytest.raises(InputError, match="does not know the class 'cat'"):
        patch_attribution(MODEL, IMAGES[:1], ["cat"], patches=2)
    with pytest.raises(InputError, match="patches must be a whole number from 1 to 8"):
        patch_attribution(MODEL, IMAGES[:1], ["3"], patches=9)


def test_colours_lie_over_a_grey_image():
    image = np.full((4, 4, 3), [0, 30, 60], np.uint8)
    found = overlaid(image, np.array([[0.0, 1.0], [0.5, 2.0]]), 0.0, 1.0)
    assert found.shape == (4, 4, 3) and (found[0, 3] == found[3, 3]).all() and (found[0, 0] != found[0, 3]).any()
    np.testing.assert_allclose(found[0, 0], 0.4 * 30 + 0.6 * np.array([68, 1, 84]), atol=1)  # viridis begins so


def test_the_command_writes_a_sheet_a_task(tmp_path, capsys):
    MODEL.save(tmp_path / "model")
    given = [f"--model={tmp_path / 'model'}", "--limit=6", f"--output={tmp_path / 'out'}", "--pictures=2"]
    assert cli.run(evaluate.main, [*given, "--tasks=digits,digits_knn:30"]) == 0
    assert f"pictures: {tmp_path / 'out' / 'pictures'}" in capsys.readouterr().out
    files = sorted((tmp_path / "out" / "pictures").iterdir())
    assert len(files) == 2 and files[0].name == "digits.png" and files[1].name.startswith("digits_knn_30")
    for file in files:
        with Image.open(file) as sheet:
            assert sheet.size == (3 * SIDE + 2, 2 * (SIDE + LINE) + 1)
    # Kinds, and each image of a changed task twice.
    chosen = [*given, "--tasks=digits,digits+occlusion", "--pictures=2:attention,rollout,gradient"]
    assert cli.run(evaluate.main, chosen) == 0
    for name, rows in (("digits", 2), ("digits+occlusion", 4)):
        with Image.open(tmp_path / "out" / "pictures" / f"{name}.png") as sheet:
            assert sheet.size == (4 * SIDE + 3, rows * (SIDE + LINE) + rows - 1)
    for flags, message in (
        (["--tasks=digits_knn:30", "--pictures=2:gradient"], "task digits_knn:30: there are no pictures 'gradient'"),
        (["--tasks=digits", "--pictures=2:roll"], "no kind 'roll'; did you mean 'rollout'?"),
        (["--tasks=digits", "--pictures=many"], "expected how many images"),
    ):
        assert cli.run(evaluate.main, [*given, *flags]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="task digits does not ask what an image shows"):
        asked = [Apply("classify", Media("image", IMAGES[0])), Score("a", "b")]
        Pictures(None, 1).check(get_task("digits"), MODEL, [asked])
