"""Tokens that a published model bans are never drawn, whatever draws."""

import json

import folders
import pytest

import fmjax
from fmjax.errors import ConfigError, InputError
from fmjax.inference.beam import beam_search
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import PromptRequest
from fmjax.inference.sampler import Sampling
from fmjax.interop.loading import banned_ids


def drawn(engine):
    """Tokens of greedy and random drawing."""
    requests = [PromptRequest([3, 4, 5], 12, Sampling(t), seed) for t in (0.0, 3.0) for seed in range(3)]
    return {token for one in engine.generate(requests) for token in one.tokens}


@pytest.mark.parametrize(("name", "file"), [("marian", "config.json"), ("llama", "generation_config.json")])
def test_bans_of_a_published_folder_hold_through_saving_and_exporting(name, file, tmp_path):
    folder = folders.published(tmp_path / "first", name, eos_token_id=0)
    rows = fmjax.load(folder).module.vocab_size
    banned = set(range(2, rows - 3))
    values = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    values |= {"bad_words_ids": [[i] for i in sorted(banned)[1:]] + [[0]], "suppress_tokens": [2], "eos_token_id": 0}
    (folder / file).write_text(json.dumps(values))
    model = fmjax.load(folder)
    # EOS is not banned, as in transformers.
    assert drawn(Engine(model.module, model.params)) & banned and not drawn(model.engine) & banned
    beams = beam_search(model.engine, [[3, 4, 5]], max_new_tokens=12)[0]
    assert not {token for beam in beams for token in beam.tokens} & banned
    for format in ("fmjax", "hf"):
        model.save(tmp_path / format, format=format)
        assert set(fmjax.load(tmp_path / format).config["published"]["banned_ids"]) == banned


def test_what_is_not_honoured_is_said_and_what_is_no_ban_is_refused(caplog):
    assert banned_ids({"bad_words_ids": [[7], [3, 4]], "begin_suppress_tokens": [9], "suppress_tokens": None}, "x") == (
        7,
    )
    assert "x: generation does not honour bad_words_ids = [[3, 4]], begin_suppress_tokens = [9]" in caplog.text
    for key, value in (("bad_words_ids", [7]), ("bad_words_ids", [[]]), ("suppress_tokens", ["a"])):
        with pytest.raises(ConfigError, match=f"{key} = .*expected"):
            banned_ids({key: value}, "x")


def test_a_ban_outside_the_vocabulary_is_refused(tmp_path):
    model = fmjax.load(folders.published(tmp_path, "gpt2"))
    with pytest.raises(InputError, match="banned_ids has 100000"):
        Engine(model.module, model.params, banned_ids=[100000])
