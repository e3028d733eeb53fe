"""A data source that only this lab has: pairs rated by a hidden matrix."""

import dataclasses

import numpy as np

from fmjax.data.base import OpenData


class Pairs:
    def __init__(self, seed: int, num_features: int, length: int):
        self.seed, self.length = seed, length
        self.hidden = (
            np.random.default_rng(0).normal(size=(num_features, num_features)).astype(np.float32) / num_features
        )

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        left, right = np.random.default_rng((self.seed, index)).normal(size=(2, len(self.hidden))).astype(np.float32)
        return {"left": left, "right": right, "rating": left @ self.hidden @ right, "loss_weights": np.float32(1.0)}


@dataclasses.dataclass(frozen=True)
class RatedPairs:
    num_features: int = 6

    def open(self, *, seed, cache_dir, workdir=None, progress=False):
        return OpenData(
            train=Pairs(seed, self.num_features, 2**62),
            evaluation={"fresh": Pairs(seed + 1, self.num_features, 50)},
            model_fields={"num_features": self.num_features},
            identity={"dataset": f"pairs:{self.num_features}"},
        )
