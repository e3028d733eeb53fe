"""Images of captions by codes: the same alone as among others, of every seed there is."""

import dataclasses

import flax.linen as nn
import numpy as np
import pytest
from flax.core import meta

from fmjax.data.codecs.image import ImageCodec
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference import drawn_codes, generators, steps
from fmjax.inference.model import Model
from fmjax.inference.prompts import caption_row
from fmjax.models.dalle import Dalle
from fmjax.objectives.base import OtherModel
from fmjax.tasks.made.making import decoded, make
from tests.quick_keys import quick_key

LENGTH, CODES = 12, 4


class Shades(nn.Module):
    """A first stage whose codes are shades."""

    num_codes: int = CODES
    image_size: int = 2
    num_channels: int = 1

    def codes(self, images):
        raise NotImplementedError

    def images_of(self, codes):
        return (codes / 1.5 - 1).reshape(len(codes), 2, 2, 1)


@pytest.fixture(scope="module")
def model():
    tokenizer = ByteTokenizer()
    module = Dalle(num_layers=1, hidden_size=8, num_heads=2, num_codes=CODES, num_places=4, masks=(), last_mask="full",
                   vocab_size=tokenizer.vocab_size, max_length=LENGTH, dropout=0.0, init_std=0.5)  # fmt: skip
    rows = np.ones((1, LENGTH), np.int32)
    params = module.init(quick_key(0), rows, rows, np.zeros((1, 4), np.int32))["params"]
    config = {"objective": {"name": "captioned_codes", "first_stage": "a run"}}
    stage = {"first_stage": OtherModel(Shades(), {})}
    return Model(
        module, meta.unbox(params), config, tokenizer=tokenizer, codecs={"image": ImageCodec(2, 2, 1)},
        open_other=stage.get,
    )  # fmt: skip


def test_every_seed_draws_images_of_its_own(model):
    images = [np.stack(model.generate(["a"], num_samples=8, seed=seed)) for seed in (0, 2**31 - 1, 2**31, 2**32 - 1)]
    for index, image in enumerate(images):
        assert all((image != other).any() for other in images[:index])


def test_guidance_is_of_logits(model, monkeypatch):
    """The first code has the closed form's shares; a caption's rows may not meet those that they are guided away from.
    """
    module, draw = model.module, dict(num_samples=3000, batch_size=3000, seed=1)
    model = dataclasses.replace(model, config={"objective": dict(model.config["objective"], label_dropout=0.1)})
    row = lambda text: caption_row(model, text, LENGTH)
    none = dict.fromkeys(("tokens", "segment_ids"), np.zeros(LENGTH, np.int32))

    def logits(one):
        (_, _), image = module.apply(model.variables, one["tokens"][None], one["segment_ids"][None],
                                     np.zeros((1, 4), np.int32), method="features")  # fmt: skip
        return np.asarray(image[0] @ image[1]["kernel"])[0, 0]

    def shares(logits):
        return np.exp(logits) / np.exp(logits).sum()

    for options, other in ((dict(guidance=8.0), none), (dict(guidance=8.0, negative="b"), row("b"))):
        guided = logits(other) + 8.0 * (logits(row("a")) - logits(other))
        images = np.stack(model.generate(["a"], **draw, **options))[:, 0, 0, 0]
        found = [(images == shade).mean() for shade in (0, 85, 170, 255)]
        assert np.abs(shares(guided) - shares(logits(row("a")))).max() > 0.1
        np.testing.assert_allclose(found, shares(guided), atol=0.03)
    with pytest.raises(InputError, match="label_dropout = 0, so it does not know what to draw without a caption"):
        dataclasses.replace(model, config={"objective": model.config["objective"] | {"label_dropout": 0.0}}).generate(
            ["a"], guidance=2.0
        )
    with pytest.raises(InputError, match="negative = 'b' has no meaning with guidance = 1"):
        model.generate(["a"], negative="b")


def test_told_in_pieces_codes_are_the_same(model, monkeypatch):
    images, said = model.generate(["a"], num_samples=2), []
    monkeypatch.setattr(drawn_codes, "PIECE", 1)
    monkeypatch.setattr(steps, "LEAST_SECONDS", 0.0)
    with steps.telling(lambda *one: said.append(one)):
        np.testing.assert_array_equal(model.generate(["a"], num_samples=2), images)
    assert said == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_is_missing_is_made_alone_as_it_was(model):
    options = dict(num_samples=3, seed=5)
    images = model.generate(["a", "b", "a"], **options)
    assert len(images) == 9 and len({image.tobytes() for image in images}) > 3 and model.generate([]) == []
    kind = generators.kind_of(model)
    found = dict(kind(model).run(["a", "b", "a"], kind.Options(**options), only={4, 8}))
    assert sorted(found) == [4, 8]
    for index, image in found.items():
        np.testing.assert_array_equal(image, images[index])
    # Tasks about made images make no earlier copies again.
    np.testing.assert_array_equal(decoded(make(model, [("a", 5, (), 5)])[0]), images[8])
