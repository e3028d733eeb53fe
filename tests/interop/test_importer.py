"""Published folders in: shards, dtypes, older names, meshes, and what is wrong with a folder."""

import json

import flax.linen as nn
import folders
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import fmjax
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.inference.embedding import embed
from fmjax.interop.loading import model_section, placed
from fmjax.interop.opening import open_folder
from fmjax.load import Model
from fmjax.models.vit import ViT
from tests.quick_keys import quick_key

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def llama():
    """(weights, config.json) of the LLaMA fixture."""
    fixture = folders.read("llama")
    return folders.part(fixture, "weight/"), json.loads(str(fixture["config"]))


def write_shards(folder, weights, config, files=3):
    """The tensors dealt out to several files, with their index."""
    folder.mkdir()
    names = [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)]
    weight_map = {key: names[i % files] for i, key in enumerate(sorted(weights))}
    for name in names:
        save_file({k: weights[k] for k, file in weight_map.items() if file == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_many_files_of_any_float_dtype(llama, tmp_path):
    weights, config = llama
    whole = fmjax.load(folders.write(tmp_path / "whole", weights, config))
    same(whole.params, fmjax.load(write_shards(tmp_path / "shards", weights, config)).params)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        halves = {key: value.astype(dtype) for key, value in weights.items()}
        folder = write_shards(tmp_path / str(np.dtype(dtype)), halves, config)
        assert open_folder(folder).dtype == str(np.dtype(dtype))
        expected = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), whole.params)
        same(fmjax.load(folder).params, jax.tree.map(lambda x: x.astype(jnp.float32), expected))
        kept = fmjax.load(folder, dtype=str(np.dtype(dtype)))
        assert {leaf.dtype for leaf in jax.tree.leaves(kept.params)} == {np.dtype(dtype)}
        same(kept.params, expected)
        assert kept.module.dtype == str(np.dtype(dtype))


@pytest.mark.parametrize(
    ("name", "mesh"), [("llama", {"fsdp": 4, "tensor": 2}), ("gpt2", {"data": 2, "fsdp": 2, "tensor": 2})]
)
def test_a_mesh_gives_the_same_model_in_shards(name, mesh, tmp_path):
    fixture = grown(folders.read(name))
    config = json.loads(str(fixture["config"])) | {"vocab_size": 30}
    folder = folders.write(tmp_path / "published", folders.part(fixture, "weight/"), config)
    whole, split = fmjax.load(folder), fmjax.load(folder, mesh=mesh)
    same(whole.params, split.params)
    kernel = split.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
    layers, width, inner = kernel.shape
    assert {s.data.shape for s in kernel.addressable_shards} == {
        (layers, width // mesh["fsdp"], inner // mesh["tensor"])
    }
    tokens = fixture["tokens"][:1]
    np.testing.assert_allclose(split.apply(tokens), whole.apply(tokens), atol=1e-5)
    split.save(tmp_path / "saved", format="hf")
    same(fmjax.load(tmp_path / "saved").params, whole.params)


def grown(fixture):
    """A fixture with one more token: 29 do not divide over two devices."""
    names = ("model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight")
    more = {f"weight/{n}": np.pad(fixture[f"weight/{n}"], ((0, 1), (0, 0))) for n in names if f"weight/{n}" in fixture}
    return fixture | more


def test_models_split_over_a_mesh_generate_and_score_the_same(llama, tmp_path):
    weights, config = llama
    one_layer = {k: v for k, v in weights.items() if ".layers.1." not in k and ".layers.2." not in k}
    more = {k: np.pad(v, ((0, 229), (0, 0))) if v.shape[0] == 29 else v for k, v in one_layer.items()}
    changes = {"vocab_size": 258, "max_position_embeddings": 16, "num_hidden_layers": 1}
    folder = folders.write(tmp_path / "published", more, config | changes)
    ByteTokenizer().save(folder)
    mesh = {"data": 4, "tensor": 2}
    whole, split = fmjax.load(folder), fmjax.load(folder, mesh=mesh)
    logprobs = jax.nn.log_softmax(whole.apply([[256, *b"abc"]])[0])
    (text,) = split.generate(["abc"], max_new_tokens=1, temperature=0)
    assert text == whole.tokenizer.decode([int(logprobs[3].argmax())])
    np.testing.assert_allclose(
        split.score([("a", "bc")])[0][0], logprobs[1, ord("b")] + logprobs[2, ord("c")], rtol=1e-5
    )
    whole.save(tmp_path / "ours")
    same(fmjax.load(tmp_path / "ours", mesh=mesh).params, split.params)
    with pytest.raises(ConfigError, match="mesh has no field 'tenser'; did you mean 'tensor'"):
        fmjax.load(folder, mesh={"tenser": 2})


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "bert_masked_lm"])
def test_files_of_the_bare_model_lack_its_prefix(name, tmp_path):
    fixture = folders.read(name)
    prefix = "bert." if name.startswith("bert") else "transformer."
    weights = {key.removeprefix(prefix): value for key, value in folders.part(fixture, "weight/").items()}
    assert not any(key.startswith(prefix) for key in weights)
    model = fmjax.load(folders.write(tmp_path, weights, json.loads(str(fixture["config"]))))
    np.testing.assert_allclose(model.apply(fixture["tokens"][:1])[0], fixture["logits"][0], atol=1e-4)


@pytest.mark.parametrize("name, architecture", [("bert", "BertModel"), ("roberta", "RobertaModel")])
@pytest.mark.parametrize("prefixed", [False, True])
def test_an_encoder_without_a_head_gives_embeddings(name, architecture, prefixed, tmp_path):
    """As embedding models are published: bare names, a pooler or none."""
    fixture = folders.read(name)
    weights = {k: v for k, v in folders.part(fixture, "weight/").items() if k.startswith(f"{name}.")}
    size = len(weights[f"{name}.embeddings.LayerNorm.bias"])
    weights |= {
        f"{name}.pooler.dense.weight": np.eye(size, dtype=np.float32),
        f"{name}.pooler.dense.bias": np.ones(size, np.float32),
    }
    weights = {k if prefixed else k.removeprefix(f"{name}."): v for k, v in weights.items()}
    config = json.loads(str(fixture["config"])) | {"architectures": [architecture]}
    model = fmjax.load(folders.write(tmp_path / "bare", weights, config))
    assert not {"head_transform", "head_norm", "head_bias", "pooler"} & set(model.params)

    whole = fmjax.load(folders.published(tmp_path / "whole", name))
    tokens, segment_ids = fixture["tokens"], (fixture["tokens"] != 1).astype(np.int32)
    hidden = [
        np.asarray(m.module.apply({"params": m.params}, tokens, segment_ids, method="hidden")) for m in (model, whole)
    ]
    np.testing.assert_array_equal(*hidden)
    texts = [row[mask > 0].tolist() for row, mask in zip(tokens, segment_ids)]
    vectors = embed(model.module, model.params, texts)
    expected = [row[mask > 0].mean(0) for row, mask in zip(hidden[0], segment_ids)]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)

    no_head = "no masked-language-model head.*Model.embed"
    with pytest.raises(InputError, match=no_head):
        model.apply(tokens)
    with pytest.raises(InputError, match=no_head):
        Model(model.module, model.params, tokenizer=Masked()).fill_mask(["a_b"])
    model.save(tmp_path / "saved", format="hf")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [architecture]
    same(fmjax.load(tmp_path / "saved").params, model.params)

    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    for folder in ("bare", "saved"):
        theirs = getattr(transformers, architecture).from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            theirs = theirs(torch.tensor(tokens), torch.tensor(segment_ids)).last_hidden_state.numpy()
        np.testing.assert_allclose(hidden[0][segment_ids > 0], theirs[segment_ids > 0], atol=1e-4)


class Masked(ByteTokenizer):
    """Bytes modulo 20, of which the sign "_" is the mask."""

    mask_id, vocab_size, cls_id, sep_id = 2, 20, 3, 4

    def encode_special(self, text):
        return [2 if sign == "_" else ord(sign) % 15 + 5 for sign in text]


def test_older_names_buffers_and_repeated_tensors(tmp_path):
    fixture = folders.read("bert")
    weights = folders.part(fixture, "weight/")
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in weights.items()
    }
    assert set(old) != set(weights)
    old |= {
        "bert.embeddings.position_ids": np.arange(16)[None],
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }
    config = json.loads(str(fixture["config"]))
    expected = fmjax.load(folders.write(tmp_path / "new", weights, config)).params
    same(fmjax.load(folders.write(tmp_path / "old", old, config)).params, expected)
    # A masked LM whose file has the other head too keeps it.
    masked = fmjax.load(folders.write(tmp_path / "masked", weights, config | {"architectures": ["BertForMaskedLM"]}))
    assert masked.module.next_sentence
    del old["bert.embeddings.word_embeddings.weight"]  # the tensor is there under its other name
    same(fmjax.load(folders.write(tmp_path / "other_name", old, config)).params, expected)
    old["cls.predictions.decoder.bias"] = old["cls.predictions.decoder.bias"] + 1
    with pytest.raises(CheckpointError, match=r"'cls.predictions.decoder.bias' should repeat 'cls.predictions.bias'"):
        fmjax.load(folders.write(tmp_path / "different", old, config))


def test_rotary_buffers_are_passed_over(llama, tmp_path):
    weights, config = llama
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(3)}
    loaded = fmjax.load(folders.write(tmp_path / "with", weights | buffers, config))
    plain = fmjax.load(folders.write(tmp_path / "without", weights, config))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, plain.params)


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path):
    fixture = folders.read("llama_linear")
    weights, config = folders.part(fixture, "weight/"), json.loads(str(fixture["config"]))
    embedding = weights["model.embed_tokens.weight"]
    fmjax.load(folders.write(tmp_path / "same", weights | {"lm_head.weight": embedding}, config))
    with pytest.raises(CheckpointError, match="'lm_head.weight' should repeat.*tie_word_embeddings"):
        fmjax.load(folders.write(tmp_path / "other", weights | {"lm_head.weight": embedding + 1}, config))


def test_a_bare_model_needs_tied_embeddings(llama, tmp_path):
    weights, config = llama
    bare = {k.removeprefix("model."): v for k, v in weights.items() if k != "lm_head.weight"}
    folder = folders.write(tmp_path, bare, config | {"architectures": ["LlamaModel"], "tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match="the folder has no output head.*'lm_head.weight'.*tie_word_embeddings"):
        fmjax.load(folder)


def test_missing_unexpected_and_misshapen_tensors_are_named(llama, tmp_path):
    weights, config = llama
    name = "model.layers.1.mlp.up_proj.weight"

    def refused(tensors, match, **changes):
        folder = folders.write(tmp_path, tensors, config | changes)
        with pytest.raises(CheckpointError, match=match):
            fmjax.load(folder)

    refused({k: v for k, v in weights.items() if k != name}, rf"'{name}' of shape \(24, 16\) is missing")
    refused(
        weights | {name: weights[name].T.copy()},
        rf"'{name}' in model.safetensors has shape \(16, 24\), expected \(24, 16\)",
    )
    refused(
        weights | {"model.extra.weight": np.ones(3, np.float32)}, r"'model.extra.weight' of shape \(3,\).*no parameter"
    )
    refused(weights, r"'model.layers.2.\S+' of shape .* belongs to no parameter", num_hidden_layers=2)
    refused(weights, r"'model.layers.3.\S+' of shape .* is missing", num_hidden_layers=4)
    refused(weights | {name: weights[name].astype(np.int8)}, rf"'{name}' .* has dtype I8")


def test_damaged_files_are_named(llama, tmp_path):
    weights, config = llama
    folder = folders.write(tmp_path / "one", weights, config)
    file = folder / "model.safetensors"
    good = file.read_bytes()
    for bad, match in [
        (good[:-5], "model.safetensors' is truncated: [0-9]+ bytes, but its header describes [0-9]+"),
        (good + b"xx", "is too long"),
        (good[:30], "header is damaged"),
        (b"", "is not a safetensors file"),
        (good[:9] + b"\xff" + good[10:], "damaged safetensors header"),
        (good.replace(b'"shape":[29,16]', b'"shape":[29,17]'), "damaged safetensors header .*lies at"),
    ]:
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=match):
            fmjax.load(folder)
    folder = write_shards(tmp_path / "shards", weights, config)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(
        json.dumps({"weight_map": index["weight_map"] | {"ghost": next(iter(index["weight_map"].values()))}})
    )
    with pytest.raises(CheckpointError, match="says that tensor 'ghost' is in 'model-0000.*but it is not"):
        fmjax.load(folder)
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lists the file 'model-00002-of-00003.safetensors', which is not"):
        fmjax.load(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../one/model.safetensors"}}))
    with pytest.raises(CheckpointError, match="lists the file '../one"):
        fmjax.load(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="index.json' is damaged"):
        fmjax.load(folder)


def test_pickles_are_not_read(llama, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama[1]))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match="found: pytorch_model.bin.*convert it once.*safetensors"):
        fmjax.load(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(llama, tmp_path):
    weights, config = llama
    folder = folders.write(tmp_path, weights, config)
    ByteTokenizer().save(folder)
    with pytest.raises(InputError, match="tokenizer has 258 tokens, the model's vocabulary only 29"):
        fmjax.load(folder)


def test_a_published_model_saved_as_ours_loads_equal(llama, tmp_path):
    weights, config = llama
    model = fmjax.load(folders.write(tmp_path / "published", weights, config | {"eos_token_id": 7}))
    model.save(tmp_path / "ours")
    again = fmjax.load(tmp_path / "ours")
    assert again.module == model.module and again.add_bos == model.add_bos
    same(again.params, model.params)
    again.save(tmp_path / "back", format="hf")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == 7
    same(fmjax.load(tmp_path / "back").params, model.params)
    with pytest.raises(InputError, match="no checkpoint of step 3"):
        fmjax.load(tmp_path / "back", step=3)


def test_the_section_of_a_training_config(llama, tmp_path):
    from fmjax.config import build
    from fmjax.models import MODELS

    folder = folders.write(tmp_path, *llama)
    section = model_section(folder)
    assert section["name"] == "llama" and section["rope_scaling"]["name"] == "llama3"
    assert build(section, MODELS) == fmjax.load(folder).module
    assert isinstance(fmjax.load(folder), Model)


def test_added_tokens_without_a_row_are_said_and_texts_with_them_refused(llama, tmp_path, caplog):
    """As in published Gemma 3 text models, whose tokenizer has a token for images that the model lacks."""
    import tokenizers

    weights, config = llama
    folder = folders.write(tmp_path, weights, config)
    vocabulary = {chr(97 + i): i for i in range(26)} | {"<eos>": 26, "[UNK]": 27, " ": 28}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    model = fmjax.load(folder)
    assert "no row for these added tokens: '<image>'" in caplog.text
    assert model.tokenizer.vocab_size == 30 and len(model.score([("a", "b")])) == 1
    with pytest.raises(InputError, match="'<image> a' has the token '<image>', for which the model has no embedding"):
        model.encode_prompts(["<image> a"], special=True)


def test_a_run_of_a_vision_transformer_lies_on_a_mesh(tmp_path):
    sizes = dict(num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, image_size=8, num_channels=1)
    sizes |= dict(num_classes=4, patch_size=4)
    module, images = ViT(**sizes), jnp.linspace(0, 1, 128).reshape(2, 8, 8, 1)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), images)["params"])
    params["head"] = jax.tree.map(lambda x: x + 0.1, params["head"])
    Model(module, params, {"model": {"name": "vit", **sizes}}).save(tmp_path / "run")
    model = fmjax.load(tmp_path / "run", mesh={"fsdp": 4, "tensor": 2})
    assert len(model.params["patch_embedding"]["kernel"].devices()) == 8
    found = jax.jit(lambda x: model.module.apply({"params": model.params}, x))(images)
    np.testing.assert_allclose(found, module.apply({"params": params}, images), atol=1e-5)


def test_a_module_that_does_not_say_what_it_takes_is_named():
    class Silent(nn.Module):
        def __call__(self, x):
            return x

    with pytest.raises(ConfigError, match=r"Silent does not say what it takes.*give it a method example\(\)"):
        placed(Silent(), None)
