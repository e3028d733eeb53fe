"""What is measured: training steps of small LLaMAs, with one size at a time varied by powers of two."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Point:
    """One training step: model, batch, and simulated devices that parameters and rows are split over (`fsdp`)."""

    layers: int
    width: int
    length: int
    batch: int
    devices: int = 1

    def config(self) -> dict:
        """The training config: bytes, heads of 64, MLPs three times as wide as the stack, nothing computed again."""
        heads = max(1, self.width // 64)
        return {
            "train": {"steps": 1000, "batch_size": self.batch},
            "mesh": {"data": 1, "fsdp": self.devices},
            "model": {
                "name": "llama", "num_layers": self.layers, "hidden_size": self.width, "num_heads": heads,
                "intermediate_size": 3 * self.width, "max_length": self.length, "vocab_size": 264,
                "unroll": 1, "remat": "none",
            },
            "objective": {"name": "causal_lm"},
            "data": {"source": "builtin", "sequence_length": self.length, "tokenizer": "bytes"},
            "optimizer": {"name": "adamw", "learning_rate": 3e-4, "clip_norm": 1.0},
        }  # fmt: skip


def powers(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ..., last."""
    return [first * 2**i for i in range((last // first).bit_length())]


def sweeps(base: Point, ranges: dict[str, tuple[int, int]], long: Point, lengths: tuple[int, int]):
    """Points by what is varied: each range around `base`; lengths of `long` with as many tokens a step throughout."""
    found = {
        name: [dataclasses.replace(base, **{name: value}) for value in powers(*span)] for name, span in ranges.items()
    }
    tokens = long.length * long.batch
    found["length"] = [dataclasses.replace(long, length=t, batch=tokens // t) for t in powers(*lengths)]
    return found


SETS = {
    "cores2": sweeps(
        Point(layers=4, width=256, length=256, batch=8),
        dict(layers=(1, 32), width=(128, 1024), batch=(1, 32), devices=(1, 8)),
        Point(layers=1, width=64, length=32768, batch=1),
        (256, 32768),
    ),
    # To see that the study itself works.
    "tiny": sweeps(
        Point(layers=2, width=64, length=64, batch=4),
        dict(layers=(1, 4), width=(32, 64), batch=(2, 4), devices=(1, 2)),
        Point(layers=2, width=32, length=256, batch=1),
        (128, 256),
    ),
}
