"""Adapters alone: PEFT's folders both ways, several on one model, and those that a run trained."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import byte_model, stirred

import fmjax
from fmjax.assemble import build_weights
from fmjax.checkpoint_files import save_params
from fmjax.convert import main as convert
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError

sys.path.append(str(pathlib.Path(__file__).parents[1] / "interop"))
import folders  # noqa: E402


@pytest.fixture(scope="module")
def oracle():
    with np.load(pathlib.Path(__file__).parents[1] / "oracles" / "peft.npz") as stored:
        return dict(stored)


def write_adapter(folder: pathlib.Path, oracle, name: str, **changes) -> pathlib.Path:
    folder.mkdir()
    save_file(folders.part(oracle, f"{name}/tensor/"), folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads(str(oracle[f"{name}/config"])) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory, oracle):
    """(a published folder, a DoRA adapter of it by PEFT that names it)."""
    folder = tmp_path_factory.mktemp("peft")
    base = folders.published(folder / "base", "llama")
    return base, write_adapter(folder / "poet", oracle, "llama", base_model_name_or_path=str(base))


def test_an_adapter_of_peft_gives_its_logits_and_is_written_as_it_was_read(llama, oracle, tmp_path):
    base, poet = llama
    model = fmjax.load(poet)
    logits, tokens = oracle["llama/logits"], oracle["tokens"]
    np.testing.assert_allclose(model.apply(tokens), logits, atol=2e-4)
    assert str(poet) in model.source and model.adapter == "poet"
    model.save(tmp_path / "again", format="peft")
    tensors = load_file(tmp_path / "again" / "adapter_model.safetensors")
    expected = folders.part(oracle, "llama/tensor/")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name])
    ours = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    theirs = json.loads((poet / "adapter_config.json").read_text())
    theirs |= {"target_modules": sorted(theirs["target_modules"]), "init_lora_weights": True}  # which loading overrides
    assert {key: theirs[key] for key in ours} == ours
    convert([f"--input={base}", f"--adapter={poet}", f"--output={tmp_path / 'merged'}", "--to=hf"])
    np.testing.assert_allclose(fmjax.load(tmp_path / "merged").apply(tokens), logits, atol=2e-4)


def test_several_adapters_of_one_model_are_chosen_by_name_and_share_its_arrays(llama, oracle, tmp_path):
    base, poet = llama
    tensors = {name: 2 * x for name, x in folders.part(oracle, "llama/tensor/").items()}
    other = write_adapter(tmp_path / "other", oracle, "llama")
    save_file(tensors, other / "adapter_model.safetensors")
    model = fmjax.load(base, adapters={"poet": poet, "coder": other})
    tokens, plain = oracle["tokens"], model.apply(oracle["tokens"])
    one, two = model.with_adapter("poet"), model.with_adapter("coder")
    np.testing.assert_allclose(one.apply(tokens), oracle["llama/logits"], atol=2e-4)
    assert np.abs(two.apply(tokens) - one.apply(tokens)).max() > 1e-2
    np.testing.assert_array_equal(two.with_adapter(None).apply(tokens), plain)
    table = lambda m: m.params["token_embedding"]["embedding"].unsafe_buffer_pointer()
    assert table(one) == table(two) == table(model)
    with pytest.raises(InputError, match="knows no adapter 'poets'; did you mean 'poet'"):
        model.with_adapter("poets")
    with pytest.raises(InputError, match="goes by no adapter to save"):
        model.save(tmp_path / "no", format="peft")
    # Decoding has its layers one by one, and theirs.
    greedy = dict(max_new_tokens=4, temperature=0)
    expected = one.complete([[5, 6, 7]], **greedy)[0].tokens
    assert model.unrolled().with_adapter("poet").complete([[5, 6, 7]], **greedy)[0].tokens == expected
    logits = np.asarray(one.apply(np.asarray([[5, 6, 7, *expected[:-1]]])))
    assert logits[0, 2:].argmax(-1).tolist() == list(expected)


def test_kernels_published_side_by_side_take_their_share_of_an_adapter(oracle, tmp_path):
    base = folders.published(tmp_path / "base", "gpt2")
    model = fmjax.load(base, adapters=write_adapter(tmp_path / "adapter", oracle, "gpt2"))
    np.testing.assert_allclose(model.apply(oracle["tokens"]), oracle["gpt2/logits"], atol=2e-4)
    model.save(tmp_path / "again", format="peft")
    again = fmjax.load(base, adapters=tmp_path / "again")
    np.testing.assert_allclose(again.apply(oracle["tokens"]), oracle["gpt2/logits"], atol=2e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported, only 'LORA'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
    ],
)
def test_what_is_no_adapter_of_kernels_is_refused(change, message, llama, oracle, tmp_path):
    with pytest.raises(InputError, match=message):
        fmjax.load(llama[0], adapters=write_adapter(tmp_path / "adapter", oracle, "llama", **change))


def test_an_adapter_of_another_model_is_refused_by_name(llama, oracle, tmp_path):
    other = folders.published(tmp_path / "gpt2", "gpt2")
    with pytest.raises(InputError, match=r"poet' adapts 'model.layers.*trained beside .*base"):
        fmjax.load(other, adapters={"poet": llama[1]})
    with pytest.raises(InputError, match="'.*gpt2' is no adapter: expected the workdir"):
        fmjax.load(llama[0], adapters=other)
    adapter = write_adapter(tmp_path / "wide", oracle, "llama")
    tensors = {n: np.concatenate([x, x], -1) for n, x in folders.part(oracle, "llama/tensor/").items() if "_A" in n}
    save_file(folders.part(oracle, "llama/tensor/") | tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"wide' is for a 'model.layers.0.* of shape .*, and that of Model"):
        fmjax.load(llama[0], adapters=adapter)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a model, what a run of LoRA beside it in int8 leaves)."""
    folder = tmp_path_factory.mktemp("runs")
    model = byte_model()
    model.save(folder / "base")
    section = {"name": "lora", "rank": 2, "base": "int8", "base_block": 4, "base_double": False}
    weights = build_weights({"weights": section})
    params = weights.attach(model.params, jax.random.key(1))
    query = params["stack"]["blocks"]["attention"]["query"]
    query["kernel"] = query["kernel"].replace(b=query["kernel"].b + 0.3)
    save_params(folder / "run", params)
    config = {**model.config, "weights": section, "train": {"init_from": str(folder / "base")}}
    (folder / "run" / "config.json").write_text(json.dumps(config))
    ByteTokenizer().save(folder / "run")
    return folder / "base", folder / "run", params


def test_what_a_run_trained_is_an_adapter_of_its_base_alone(runs, tmp_path):
    base, run, params = runs
    tokens = np.arange(12)[None]
    convert([f"--input={run}", f"--output={tmp_path / 'peft'}", "--to=peft"])
    expected = fmjax.load(base, adapters=run).apply(tokens)
    np.testing.assert_allclose(fmjax.load(run).apply(tokens), expected, atol=0.2)  # there the base is of few bits
    np.testing.assert_allclose(fmjax.load(tmp_path / "peft").apply(tokens), expected, atol=1e-5)
    plain = fmjax.load(base)
    assert np.abs(plain.apply(tokens) - expected).max() > 0.5
    tuned = dataclasses.replace(plain, params=stirred(plain.params, by=0.05))
    tuned.save(tmp_path / "tuned")
    for adapter in (run, tmp_path / "peft"):
        with pytest.raises(InputError, match="was trained beside other weights .*base.* than those of .*tuned"):
            fmjax.load(tmp_path / "tuned", adapters=adapter)
    config = json.loads((run / "config.json").read_text())
    config["train"]["trainable"] = ["kernel/[ab]$", "norm"]
    shutil.copytree(run, tmp_path / "both")
    (tmp_path / "both" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="trained '.*norm.*' beside its adapters"):
        fmjax.load(base, adapters=tmp_path / "both")
