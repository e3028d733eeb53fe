"""Training that begins with published or saved parameters (`train.init_from`)."""

import json
import logging
import shutil

import folders
import jax
import numpy as np
import pytest
import tokenizers

import fmjax
from fmjax import config as configs
from fmjax.checkpoint_files import load_params
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop.initial import initial_params
from fmjax.interop.loading import model_section, placed
from fmjax.load import Model
from fmjax.parallel.placement import Placement
from fmjax.training.checkpoint import Checkpointer
from fmjax.training.loop import train


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A LLaMA over bytes, published."""
    folder = tmp_path_factory.mktemp("initial")
    small = fmjax.load(folders.published(folder / "small", "llama"))
    params = dict(small.params, head=np.pad(small.params["head"], ((0, 0), (0, 229)), constant_values=0.1))
    params["token_embedding"] = {
        "embedding": np.pad(small.params["token_embedding"]["embedding"], ((0, 229), (0, 0)), constant_values=0.1)
    }
    params = jax.tree.map(jax.numpy.asarray, params)
    model = Model(small.module.clone(vocab_size=258), params, {}, ByteTokenizer())
    model.save(folder / "published", format="hf")
    return folder / "published"


def settings(folder, text, model=None, **train_keys):
    config = {
        "train": {"steps": 1, "batch_size": 8, "eval_every": -1, "sample_every": -1, "tensorboard": False,
                  "init_from": str(folder), **train_keys},
        "model": model or model_section(folder),
        "objective": {"name": "causal_lm", "sample_prompts": ()},
        "data": {"source": str(text), "sequence_length": 16, "tokenizer": "bytes", "heldout_fraction": 0.0},
        "optimizer": {"name": "sgd", "learning_rate": 1e-30},
        "mesh": {"fsdp": 2},
    }
    return configs.resolve(config)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("Some words to read, and some more of them.\n" * 20)
    return tmp_path / "text.txt"


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_begins_with_published_parameters(published, text, tmp_path):
    config = settings(published, text)
    metrics = train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    assert np.isfinite(metrics["train/loss"])
    model = fmjax.load(published)
    same(load_params(tmp_path / "run")[0], model.params)  # at this learning rate they have stayed
    fmjax.load(tmp_path / "run").save(tmp_path / "back", format="hf")
    same(fmjax.load(tmp_path / "back").params, model.params)
    # A run's folder serves as a beginning too.
    shapes, shardings = placed(model.module, Placement.make({"fsdp": 4, "tensor": 2}))
    for beginning in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "1"):
        same(initial_params(str(beginning), model.module, shapes, shardings), model.params)
    longer = model.module.clone(max_length=4096)
    same(initial_params(str(published), longer, *placed(longer, None)), model.params)


def test_another_model_is_refused_by_field_and_no_folder_is_made_for_checkpoints(
    published, text, tmp_path, monkeypatch
):
    model = model_section(published)
    monkeypatch.setattr(Checkpointer, "__init__", lambda *_: pytest.fail("its threads outlive the folder"))

    def refused(error, match, **changes):
        config = settings(published, text, model=model | changes)
        with pytest.raises(error, match=match):
            train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)

    refused(ConfigError, "model.rope_theta: 50.0 there, 60.0 in this run", rope_theta=60.0)
    refused(ConfigError, "model.num_layers: 3 there, 2 in this run", num_layers=2)
    refused(ConfigError, "model.vocab_size: 258 there, 300 in this run", vocab_size=300)
    refused(ConfigError, "name: 'Qwen3' there, 'Llama'|name: 'Llama' there, 'Qwen3'", name="qwen3")
    with pytest.raises(InputError, match="nowhere' does not exist"):
        train(
            settings(tmp_path / "nowhere", text, model=model),
            tmp_path / "run",
            cache_dir=tmp_path / "cache",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["init_from", "teacher"])
def test_models_that_are_not_there_are_missed_before_the_data_are_read(published, text, tmp_path, missing):
    config = settings(published, tmp_path / "no_text.txt").to_dict()
    if missing == "teacher":
        config["objective"] = {"name": "distillation", "teacher": str(tmp_path / "nowhere"), "sample_prompts": ()}
    else:
        config["train"]["init_from"] = str(tmp_path / "nowhere")
    what = {"init_from": "train.init_from", "teacher": "the objective's model 'teacher'"}[missing]
    with pytest.raises(InputError, match=f"^{what}: .*nowhere' does not exist"):
        train(configs.resolve(config), tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)


def other_folder(published, folder):
    """The published model with another tokenizer of as many pieces."""
    shutil.copytree(published, folder)
    (folder / "tokenizer.bytes").unlink()
    words = {"some": 257, **{chr(i + 0x100): i for i in range(257)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "some"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_tokenizer_is_that_of_the_parameters(published, text, tmp_path, caplog):
    """Left out, it is theirs, of a published model as of a run; another one takes saying so."""
    other = other_folder(published, tmp_path / "other")
    options = dict(cache_dir=tmp_path / "cache", progress=False)

    def begun(run, folder, **changes):
        config = settings(folder, text, model=model_section(published), **changes.pop("train", {})).to_dict()
        del config["data"]["tokenizer"]
        config["data"] |= changes
        with caplog.at_level(logging.INFO, "fmjax"):
            train(configs.resolve(config), tmp_path / run, **options)
        return fmjax.load(tmp_path / run)

    model = begun("own", other)
    assert model.tokenizer.token(257) == "some" and model.config["data"]["tokenizer"] == str(other)
    assert "rows have 16 tokens; scoring, generation and export take up to model.max_length = 32 (as" in caplog.text
    assert model.context_length == model.module.max_length == 32
    for beginning in (tmp_path / "own", tmp_path / "own" / "checkpoints" / "1"):
        assert begun(f"again {beginning.name}", beginning).tokenizer.fingerprint == model.tokenizer.fingerprint
        with pytest.raises(
            ConfigError, match=r"trained with another tokenizer .*\(bytes\).*data.tokenizer=.*allow_other"
        ):
            begun("refused", beginning, tokenizer="bytes")
    allowed = begun("allowed", other, tokenizer="bytes", train={"allow_other_tokenizer": True})
    assert allowed.tokenizer.source == "bytes"
    with pytest.raises(ConfigError, match="allow_other_tokenizer = True is not read"):
        settings(published, text, init_from=None, allow_other_tokenizer=True)


def test_end_tokens_bans_and_generation_settings_stay_with_a_run_and_its_export(published, text, tmp_path):
    folder = tmp_path / "chat"
    shutil.copytree(published, folder)
    generation = {"eos_token_id": [257, 10], "bad_words_ids": [[7]], "do_sample": True, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    for steps in (1, 2):  # the second call resumes
        train(settings(folder, text, steps=steps), tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    tuned = fmjax.load(tmp_path / "run")
    assert tuned.eos_ids == fmjax.load(folder).eos_ids == (10, 257) and tuned.add_bos
    assert tuned.config["published"]["banned_ids"] == [7]
    assert tuned.engine.banned_ids == (7,)
    # A run that begins with the run has them from there.
    again = settings(tmp_path / "run", text, tuned.config["model"])
    train(again, tmp_path / "next", cache_dir=tmp_path / "cache", progress=False)
    assert fmjax.load(tmp_path / "next").config["published"] == tuned.config["published"]
    tuned.save(tmp_path / "back", format="hf")
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == generation


def test_damaged_weights_stop_the_run(published, text, tmp_path):
    config = settings(published, text)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in published.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes()[:-4])
    config = settings(broken, text, model=config.to_dict()["model"])
    with pytest.raises(CheckpointError, match="truncated"):
        train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
