"""A small corpus and caches that the data tests share."""

import json
import pathlib

import numpy as np
import pytest

WORDS = ["alpha", "beta", "gamma", "delta", "\n", "\t", "12", "naïve", "☃", "def f(x):\n    return x\n"]


def make_texts(count, seed):
    rng = np.random.default_rng(seed)
    return [f"{seed}/{i} " + " ".join(rng.choice(WORDS, rng.integers(1, 120))) for i in range(count)]


@pytest.fixture(scope="session")
def texts():
    return make_texts(300, 0)


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory, texts) -> pathlib.Path:
    path = tmp_path_factory.mktemp("corpus") / "small.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")
