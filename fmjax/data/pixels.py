"""Images of other data as sequences of colours, for decoders that predict pixel after pixel."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from fmjax.data import DATASETS
from fmjax.data.base import OpenData, Row
from fmjax.data.codecs.base import Codec, fingerprint
from fmjax.data.codecs.pixels import PixelCodec, grey_levels
from fmjax.errors import ConfigError

FITTED_TO = 256
"""Images of the training set that a palette is fitted to."""


@dataclasses.dataclass(frozen=True)
class PixelData:
    """Rows of one image each: `tokens` and `targets` int32 [pixels], as `PixelCodec` has them, and `loss_weights`
    float32 [pixels].

    Attributes:
      images: data whose rows have images, such as {"name": "digits"}; their augmentation is applied before.
      num_colours: of the palette.
      palette: "levels" are greys from black to white, equally far apart; "kmeans" are the means of clusters of the
        pixels of the first training images that the seed 0 draws, whatever the run's (Chen et al. 2020, section 2.1).
    """

    images: Annotated[dict, DATASETS]
    num_colours: int = 16
    palette: Literal["levels", "kmeans"] = "levels"

    def __post_init__(self):
        if not 2 <= self.num_colours <= 4096:
            raise ConfigError(f"data.num_colours = {self.num_colours} must be from 2 to 4096")

    @property
    def foreseen(self) -> dict[str, Any]:
        """Where the images know their size before they are read, the sequences' length."""
        side = getattr(self.images, "foreseen", {}).get("image_size")
        return {} if side is None else {"vocab_size": self.num_colours + 1, "max_length": side * side}

    def check_foreseen(self, module) -> None:
        if self.foreseen:
            self._check_channels(self.images.foreseen["num_channels"])
            _check_sequences(module, self.foreseen)

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The images' data, opened, with each row's image as a sequence. Raises ConfigError for data without images,
        and for levels of grey of images in colour."""
        opened = self.images.open(seed=seed, cache_dir=cache_dir, workdir=workdir, progress=progress)
        source = opened.codecs.get("image")
        if source is None:
            known = ", ".join(opened.codecs) or "none"
            raise ConfigError(f"data.images: these data have no codec of images (they have {known}); choose others")
        # Of one seed, so that runs of all seeds have one palette, and nats a pixel that compare.
        fitted_to = self.images.open(seed=0, cache_dir=cache_dir) if self.palette == "kmeans" else opened
        codec = PixelCodec(*source.shape, palette=self._palette(fitted_to.train, source))

        fields = {"vocab_size": codec.start + 1, "max_length": codec.shape[0]}
        return OpenData(
            train=PixelRows(opened.train, source, codec),
            evaluation={name: PixelRows(rows, source, codec) for name, rows in opened.evaluation.items()},
            codecs={"image": codec},
            model_fields=fields,
            check=lambda module: _check_sequences(module, fields),
            identity=dict(opened.identity) | {"palette": fingerprint(codec)},
            trained_on=opened.trained_on,
            num_train=opened.num_train,
            drawn_anew=opened.drawn_anew,
        )

    def _check_channels(self, channels: int) -> None:
        if self.palette == "levels" and channels != 1:
            raise ConfigError(
                f"data.palette = 'levels' is of grey images, and these have {channels} channels; set it to 'kmeans'"
            )

    def _palette(self, rows, source: Codec) -> tuple[tuple[float, ...], ...]:
        self._check_channels(source.channels)
        if self.palette == "levels":
            return grey_levels(self.num_colours)
        from sklearn.cluster import KMeans

        images = [source.decode(rows[i]) for i in range(min(FITTED_TO, len(rows)))]
        pixels = np.concatenate([image.reshape(-1, source.channels) for image in images]) / 255
        if (distinct := len(np.unique(pixels, axis=0))) < self.num_colours:
            raise ConfigError(
                f"data.num_colours = {self.num_colours}, but the first {len(images)} images have only {distinct} "
                "colours; lower it"
            )
        found = KMeans(self.num_colours, n_init=1, random_state=0).fit(pixels).cluster_centers_
        # Sorted, and rounded far below a shade's width: sums in another order seldom make another palette.
        return tuple(sorted(tuple(float(x) for x in np.round(colour, 4)) for colour in found))


def _check_sequences(module, fields: Mapping[str, int]) -> None:
    """Raises ConfigError for a module of other colours or another number of pixels."""
    for field, number in fields.items():
        if getattr(module, field, number) != number:
            raise ConfigError(
                f"model.{field} = {getattr(module, field)}, but images of {fields['max_length']} pixels of "
                f"{fields['vocab_size'] - 1} colours, and a token that begins them, need {number}"
            )


class PixelRows:
    """Rows of images as rows of colours."""

    def __init__(self, rows: Any, source: Codec, codec: PixelCodec):
        self._rows, self._source, self._codec = rows, source, codec

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        encoded = self._codec.encode(self._source.decode(self._rows[index]))
        return encoded | {"loss_weights": np.ones(self._codec.shape, np.float32)}
