"""The world of shapes as rows: drawn when a step asks for them, nothing on disk."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from fmjax.data.base import OpenData, Row
from fmjax.data.captions import OVERLONG
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.image_text import CaptionSettings, open_image_text
from fmjax.data.image_rows import View, check_module
from fmjax.data.prepared import fingerprint
from fmjax.data.shapes.boxes import every_length
from fmjax.data.shapes.captions import NUM_TEMPLATES
from fmjax.data.shapes.examples import Scenes
from fmjax.data.shapes.scenes import COLOURS, COUNTS, KINDS, SHAPES, Scene, World, diagonal
from fmjax.data.shuffle import Draws, shuffled_indices
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive
from fmjax.registry import nearest

VERSION = 1  # part of the data's identity: raise it where the same config gives other scenes, pictures or captions
CLASSES = {
    "colour": COLOURS,
    "shape": SHAPES,
    "combination": tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    "count": tuple(map(str, (1, *COUNTS))),
}
_TOKENIZER_SCENES = 2000  # whose captions a tokenizer is trained on, however many there are to train the model on


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Rows of a picture and its caption, or of a picture and its class.

    A row has `images` float32 [image_size, image_size, 3] in [-1, 1] and `loss_weights` float32 []. With captions it
    has `tokens` and `segment_ids` int32 [sequence_length] (see `CaptionRows`), and `labels` int32 [], equal where
    captions mean the same, however they are worded: such rows are positives of one another. Another caption can be
    true of a picture too, such as one that tells less: `is_true_of` decides.

    Evaluated are, with eval_examples rows each, "heldout": scenes that are not trained on; "templates": such with
    captions in the words held out; "combinations": such with colours and shapes that are never trained on together.

    Attributes:
      image_size: side of the pictures in pixels.
      num_examples: scenes to train on.
      eval_examples: scenes of each kind of evaluation.
      kinds: of scenes, equally often: "one" thing, "many" (two to four) equal things, a "relation" of two.
      says_size, says_place: whether captions tell the size of things, and the place of a single one.
      rows: "caption"; or what `labels` tell of a picture instead, without tokens: "colour", "shape", "combination" (of
        both) or "count".
      heldout_combinations: as "red circle"; None is one colour for each shape: red circle, green square, blue triangle,
        yellow diamond, purple cross, orange ring. () holds none out.
      heldout_templates: how many of the ways to word a caption, the last ones, are never trained on.
      sequence_length: tokens a caption, T, special ones included.
      written_length: None, or rows also have `written` and `written_ids` int32 [written_length], as `tokens` and
        `segment_ids`: what a decoder is to write, of which two thirds tell of boxes (`fmjax.data.shapes.boxes`). A
        tokenizer that is trained is trained on these texts, too.
      tokenizer: "bytes", "train:VOCAB_SIZE" (on the captions) or another of `TextData`'s, or a path.
      overlong: what becomes of a caption longer than that: "cut", or "error".
      world_seed: of the scenes. The seed of the run orders and words them.
    """

    image_size: int = 64
    num_examples: int = 10_000
    eval_examples: int = 500
    kinds: tuple[str, ...] = KINDS
    says_size: bool = True
    says_place: bool = True
    rows: str = "caption"
    heldout_combinations: tuple[str, ...] | None = None
    heldout_templates: int = 1
    sequence_length: int = 32
    written_length: int | None = None
    tokenizer: str = "train:360"
    overlong: str = "error"
    world_seed: int = 0

    def __post_init__(self):
        for name in ("image_size", "num_examples", "eval_examples", "sequence_length"):
            check_positive(**{f"data.{name}": getattr(self, name)})
        for kind in self.kinds or ("",):
            check_choice("data.kinds", kind, KINDS)
        check_choice("data.rows", self.rows, ("caption", *CLASSES))
        check_choice("data.overlong", self.overlong, OVERLONG)
        if self.written_length is not None:
            check_positive(**{"data.written_length": self.written_length})
        if not 0 <= self.heldout_templates < NUM_TEMPLATES:
            raise ConfigError(
                f"data.heldout_templates = {self.heldout_templates} must be from 0 to {NUM_TEMPLATES - 1}"
            )
        if self.rows not in ("caption", "count") and "relation" in self.kinds:
            raise ConfigError(
                f"data.rows = {self.rows!r}, but scenes of the kind 'relation' show two things; set data.kinds = "
                "('one', 'many')"
            )
        self.world  # checks the combinations

    @property
    def world(self) -> World:
        return World(self.kinds, self._heldout(), self.says_size, self.says_place, self.world_seed)

    def _heldout(self) -> tuple[tuple[str, str], ...]:
        if self.heldout_combinations is None:
            return diagonal()
        for pair in self.heldout_combinations:
            if pair not in CLASSES["combination"]:
                raise ConfigError(
                    f"data.heldout_combinations has {pair!r}{nearest(pair, CLASSES['combination'])} A combination is a "
                    f"colour ({', '.join(COLOURS)}) and a shape ({', '.join(SHAPES)})"
                )
        found = tuple(tuple(pair.split()) for pair in self.heldout_combinations)
        for place, words in enumerate((COLOURS, SHAPES)):
            for word in words:
                every = len(CLASSES["combination"]) // len(words)
                if len({pair for pair in found if pair[place] == word}) == every:
                    raise ConfigError(f"data.heldout_combinations leave nothing {word!r} to train on; leave one out")
        return found

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The scenes, shuffled anew each epoch by `seed`; a tokenizer is trained, or comes from the cache.

        Raises TokenizerError for a tokenizer that cannot be read or trained, DataError for captions too long.
        """
        codec = ImageCodec(self.image_size, self.image_size, 3)
        known = range(NUM_TEMPLATES - self.heldout_templates)
        splits = {"heldout": known}
        if self.heldout_templates and self.rows == "caption":
            splits["templates"] = range(known.stop, NUM_TEMPLATES)
        if self.world.heldout:
            splits["combinations"] = known
        scenes = {
            split: Scenes(self.world, self.image_size, split, self.eval_examples, templates)
            for split, templates in splits.items()
        }
        train = Scenes(self.world, self.image_size, "train", self.num_examples, known)
        content = [self.image_size, self.num_examples, self.heldout_templates, dataclasses.astuple(self.world)]
        identity = f"shapes:{fingerprint(VERSION, content)}"
        if self.rows != "caption":
            return self._classes(train, scenes, codec, identity, seed)
        texts = [train.captions(i)[0] for i in range(_TOKENIZER_SCENES)]
        written, longest = (), ()
        if self.written_length is not None:
            every = itertools.chain.from_iterable(part.all_captions() for part in (train, *scenes.values()))
            longest = every_length(every, self.says_size)
            written = [train.written(i, text, Draws("written", i)) for i, text in enumerate(texts)]
        return open_image_text(
            dataclasses.replace(train, all_wordings=True), scenes, View(codec),
            CaptionSettings(self.sequence_length, self.tokenizer, self.overlong, self.written_length), texts,
            captions_of=train.all_captions(), written=written, written_of=longest, name="the world of shapes",
            identity=identity, seed=seed, cache_dir=cache_dir, progress=progress,
        )  # fmt: skip

    def _classes(self, train: Scenes, scenes: Mapping[str, Scenes], codec, identity: str, seed: int) -> OpenData:
        """The scenes as pictures of classes."""
        names = CLASSES[self.rows]
        labels = LabelCodec(len(names), names)

        def row(one: Scenes, index: int) -> Row:
            label = labels.encode(_class_of(one.scene(index)[0], self.rows))
            return codec.encode(one.image(index)) | label | {"loss_weights": np.ones((), np.float32)}

        return OpenData(
            train=shuffled_indices(len(train), [seed, "shapes"]).map(lambda index: row(train, index)),
            evaluation={split: _Each(one, row) for split, one in scenes.items()},
            codecs={"image": codec, "label": labels},
            model_fields={"image_size": self.image_size, "num_channels": 3, "num_classes": len(names)},
            check=lambda module: check_module(module, codec, len(names)),
            identity={"dataset": f"{identity}:{self.rows}"},
            num_train=len(train),
        )


def _class_of(scene: Scene, rows: str) -> str:
    look = scene[0].look
    return {
        "colour": look.colour, "shape": look.shape, "combination": f"{look.colour} {look.shape}",
        "count": str(len(scene)),
    }[rows]  # fmt: skip


class _Each(Sequence):
    """Finite rows made one by one."""

    def __init__(self, scenes: Scenes, row):
        self._scenes, self._row = scenes, row

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Row:
        return self._row(self._scenes, range(len(self))[index])
