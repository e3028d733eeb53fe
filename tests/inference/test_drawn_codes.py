"""Images of captions by codes: the same alone as among others, of every seed there is."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.core import meta

from fmjax.data.codecs.image import ImageCodec
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.inference import generators
from fmjax.inference.model import Model
from fmjax.models.dalle import Dalle
from fmjax.objectives.base import OtherModel
from fmjax.tasks.made.making import decoded, make

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
    params = module.init(jax.random.key(0), rows, rows, np.zeros((1, 4), np.int32))["params"]
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
