"""Methods that go by calibration, on whole models: what they promise, interrupted and gone on with, and refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.commands import cli
from fmjax.compress import METHODS
from fmjax.compress import __main__ as command
from fmjax.compress.calibrated import AWQ, GPTQ, SmoothQuant
from fmjax.compress.pruning import Magnitude, SparseGPT, TwoOfFour, Wanda, was_pruned
from fmjax.errors import ConfigError, InputError, RunError
from fmjax.interop.loading import placed
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import num_bytes
from fmjax.parallel.placement import Placement
from tests.small_models import byte_model, random_model, stirred
from tests.two_towers import MODEL as TOWERS

TEXT = "".join(f"Rose number {i} is a rose is a rose, says {i * i % 97}.\n" for i in range(60))
LLAMA = {
    "name": "llama", "num_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2,
    "vocab_size": 64, "max_length": 32,
}  # fmt: skip

SWIN = {
    "name": "swin", "num_classes": 3, "embed_size": 8, "depths": (2,), "num_heads": (2,), "window": 2, "patch_size": 2,
    "image_size": 8, "num_channels": 1, "init_std": 0.3,
}  # fmt: skip


def run(*argv) -> int:
    return cli.run(command.main, list(map(str, argv)))


@pytest.fixture(scope="module")
def llama():
    model = random_model(LLAMA)
    params = stirred(model.params)
    # As in trained models channels have much in common, and some are larger than others.
    drawn = np.random.default_rng(1)
    table = drawn.normal(size=(64, 4)) @ drawn.normal(size=(4, 32)) + 0.3 * drawn.normal(size=(64, 32))
    params["token_embedding"] = {"embedding": jnp.asarray(table, jnp.float32)}
    scale = np.exp(drawn.normal(size=32)).astype(np.float32)
    blocks = params["stack"]["blocks"]
    for norm in ("attention_norm", "mlp_norm"):
        blocks[norm] = {"scale": blocks[norm]["scale"] * scale}
    return dataclasses.replace(model, params=params)


CALIBRATION = {"tokens": np.random.default_rng(2).integers(0, 64, (24, 24), np.int32)}
OTHERS = np.random.default_rng(3).integers(0, 64, (8, 24), np.int32)


def apart(model, other) -> float:
    """The mean square between logits, over that of the model's."""
    a, b = (np.asarray(m.apply(OTHERS), np.float64) for m in (model, other))
    return np.square(a - b).mean() / np.square(a).mean()


def test_gptq_and_awq_lose_less_of_a_model_than_rounding(llama):
    options = dict(block=16, patterns=("mlp/.*kernel$",))
    rounded = METHODS.get("int4")(**options).compress(llama)
    swept = GPTQ(**options, rows_at_once=9).compress(llama, CALIBRATION)
    scaled, clipped = (AWQ(**options, clip=clip).compress(llama, CALIBRATION) for clip in (False, True))
    assert apart(llama, swept) < 0.7 * apart(llama, rounded) and apart(llama, scaled) < 0.9 * apart(llama, rounded)
    assert apart(llama, clipped) < apart(llama, scaled)
    leaves = jax.tree.leaves(swept.params, is_leaf=lambda x: isinstance(x, QTensor))
    assert sum(isinstance(x, QTensor) and x.block == 16 and x.format == "int4" for x in leaves) == 3
    assert swept.config["compression"]["method"] == "gptq" and scaled.config["compression"]["block"] == 16


def test_gptq_keeps_the_zeros_of_what_was_pruned_on_purpose_alone(llama, tmp_path, caplog):
    options = dict(patterns=("mlp/down/kernel$",))
    down = lambda model: model.params["stack"]["blocks"]["mlp"]["down"]["kernel"]  # noqa: E731
    pruned = Magnitude(pattern="2:4", **options).compress(llama)
    zeros = np.asarray(down(pruned)) == 0
    unnamed = dataclasses.replace(pruned, config=llama.config)  # a model that happens to have zeros
    recovered = dataclasses.replace(unnamed, config={**llama.config, "weights": {"name": "sparse"}})
    for model, keep, stay in (
        (pruned, "pruned", True), (recovered, "pruned", True), (unnamed, "all", True),
        (unnamed, "pruned", False), (pruned, "none", False),
    ):  # fmt: skip
        made = GPTQ(block=16, keep_zeros=keep, **options).compress(model, CALIBRATION)
        assert np.all(np.asarray(down(made).value())[zeros] == 0) == stay, keep
    assert [record.message[:24] for record in caplog.records] == ["50% of the weights are 0"]
    recovered.save(tmp_path / "recovered")
    assert was_pruned(fmjax.load(tmp_path / "recovered").config)
    assert not was_pruned({"compression": {"method": "heads", "remove": True}})
    assert was_pruned({"compression": {"method": "rotate", "after": {"method": "heads", "remove": False}}})


def test_smoothquant_multiplies_whole_numbers_and_loses_less_than_without(llama):
    plain = METHODS.get("int8")(activations="int8").compress(llama)
    smooth = SmoothQuant().compress(llama, CALIBRATION)
    assert apart(llama, smooth) < apart(llama, plain) < 0.05
    static = SmoothQuant(static=True).compress(llama, CALIBRATION)
    kernel = static.params["stack"]["blocks"]["mlp"]["down"]["kernel"]
    assert kernel.activations == "int8" and kernel.input_scale.shape == (2,) and float(kernel.input_scale[0]) != 1
    assert apart(llama, static) < 0.05


def test_pruned_models_have_the_zeros_they_promise(llama):
    losses = {}
    for method in (Wanda(), SparseGPT(block=16), TwoOfFour(), Wanda(pattern="2:4")):
        method = dataclasses.replace(method, patterns=("mlp/.*kernel$",))
        pruned = method.compress(llama, CALIBRATION)
        losses[type(method).__name__, method.pattern] = apart(llama, pruned)
        for name in ("up", "down"):
            kernel = np.asarray(pruned.params["stack"]["blocks"]["mlp"][name]["kernel"])
            if method.pattern == "2:4":
                assert ((kernel.reshape(2, -1, 4, kernel.shape[-1]) != 0).sum(2) == 2).all()
            assert (kernel == 0).sum() == kernel.size // 2
    assert losses["SparseGPT", "0.5"] < losses["Wanda", "0.5"] < losses["Wanda", "2:4"]
    assert losses["TwoOfFour", "2:4"] < losses["Wanda", "2:4"]


def test_towers_and_what_lies_outside_of_stacks_are_compressed_too():
    drawn = np.random.default_rng(4)
    batch = {
        "images": drawn.normal(size=(16, 8, 8, 1)).astype(np.float32),
        "tokens": drawn.integers(0, 250, (16, 7), np.int32),
    }
    patterns = "vision.*(up|patch_embedding)/kernel$", "text.*(up|projection)/kernel$"
    made = GPTQ(format="int8", block=0, patterns=patterns).compress(TOWERS, batch)
    leaves = jax.tree.leaves(made.params, is_leaf=lambda x: isinstance(x, QTensor))
    assert sum(isinstance(x, QTensor) for x in leaves) == 2 + 2
    for name, array in TOWERS.apply(**batch).items():
        np.testing.assert_allclose(made.apply(**batch)[name], array, atol=0.05)
    # Stacked kernels that are in no Transformer stack.
    swin = random_model(SWIN)
    images = {"images": drawn.normal(size=(16, 8, 8, 1)).astype(np.float32)}
    made = GPTQ(format="int8", block=0, patterns=("mlp/up/kernel$",)).compress(swin, images)
    assert made.params["stage_0"]["blocks"]["mlp"]["up"]["kernel"].shape == (2, 8, 32)
    np.testing.assert_allclose(made.apply(**images), swin.apply(**images), atol=0.05)


def test_a_split_model_is_compressed_as_on_one_device_and_stays_split(llama, tmp_path):
    placement = Placement.make({"fsdp": 4, "tensor": 2})
    params = jax.device_put(llama.params, placed(llama.module, placement)[1])
    split = dataclasses.replace(llama, params=params, placement=placement)
    method = GPTQ(format="int8", block=0, patterns=("mlp/(up|down)/kernel$",))
    both = method.compress(llama, CALIBRATION), method.compress(split, CALIBRATION, folder=tmp_path / "blocks")
    held = np.zeros(8, int)
    for x in jax.tree.leaves(both[1].params):
        for shard in x.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    whole = num_bytes(both[1].params)
    small = num_bytes([x for x in jax.tree.leaves(both[1].params) if x.size < 256])  # norms and scales lie whole
    assert held.max() <= (whole - small) / 8 + small
    mlps = [model.params["stack"]["blocks"]["mlp"] for model in both]
    for name in ("up", "down"):
        alone, made = (mlp[name]["kernel"] for mlp in mlps)
        # A number that lies between two levels may go to either.
        np.testing.assert_allclose(made.value(), alone.value(), atol=2.1 * float(np.max(alone.scales)))


def test_what_was_killed_goes_on_to_the_same_result(tmp_path, monkeypatch, capsys):
    byte_model().save(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    argv = [
        f"--model={tmp_path / 'model'}", "--method=gptq", "--block=8", f"--calibration={tmp_path / 'text.txt'}",
        "--calibration_rows=8", "--calibration_length=32",
    ]  # fmt: skip
    assert run(*argv, f"--output={tmp_path / 'whole'}") == 0
    from fmjax.compress import calibrated

    whole, calls = calibrated.gptq, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 8:  # in the second of two blocks
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(calibrated, "gptq", killed)
    out = tmp_path / "cut"
    assert run(*argv, f"--output={out}") == 130 and not out.exists()
    capsys.readouterr()
    other = [*argv[:2], "--block=16", *argv[3:]]
    assert run(*other, f"--output={out}") == 2
    assert "holds blocks that were computed with another method; remove it" in capsys.readouterr().err
    assert run(*argv, f"--output={out}") == 0
    assert len(calls) == 8 + 6  # the first block was not computed again
    a, b = (fmjax.load(tmp_path / name).params for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "model", "text.txt", "whole"]


def test_one_method_comes_after_another(tmp_path, capsys):
    byte_model().save(tmp_path / "model")
    where = f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'both'}"
    assert run(*where, "--method=magnitude+int4", "--pattern=2:4", "--block=8", "--keep=mlp/up") == 0
    made = fmjax.load(tmp_path / "both")
    blocks = made.params["stack"]["blocks"]
    assert blocks["mlp"]["down"]["kernel"].block == 8 and blocks["mlp"]["up"]["kernel"].dtype == np.float32
    kernel = np.asarray(blocks["mlp"]["down"]["kernel"].value()).reshape(2, -1, 4, 16)
    assert ((kernel == 0).sum(2) >= 2).all()
    told = made.config["compression"]
    assert told["method"] == "int4" and told["after"]["method"] == "magnitude" and told["after"]["pattern"] == "2:4"
    capsys.readouterr()
    for name in METHODS.table:
        with pytest.raises(SystemExit):
            command.parse([f"--method={name}", "--help"])
        assert ("--calibration_rows" in capsys.readouterr().out) == METHODS.get(name).needs_calibration


def test_what_does_not_fit_is_refused_by_name(llama, tmp_path, capsys):
    for method, message in (
        (GPTQ(block=20), "'stack/blocks/.*cannot be cut into blocks of 20.*leave it out with keep"),
        (GPTQ(block=16, act_order=True), "'stack/blocks/.*act_order = True rounds inputs in another order"),
        (AWQ(block=20), "'stack/blocks/.*cannot be cut into blocks of 20"),
        (SparseGPT(pattern="2:5"), "'stack/blocks/.*has 32 inputs, which do not divide into groups of 5"),
    ):
        with pytest.raises(InputError, match=message):
            method.compress(llama, CALIBRATION)
    with pytest.raises(RunError, match="damping = 0.0 does not make up for that; set it larger"):
        GPTQ(block=16, damping=0.0).compress(llama, {"tokens": CALIBRATION["tokens"][:1, :3]})
    for calibration, message in (
        (None, "goes by what the model is given"),
        ({"tokens": CALIBRATION["tokens"] + 60}, "tokens contain [0-9]+; the model has 0..63"),
        (CALIBRATION | {"segment_ids": np.ones((3, 24))}, "rows of unlike numbers"),
    ):
        with pytest.raises(InputError, match=message):
            Wanda().compress(llama, calibration)
    for options, message in (
        (dict(pattern="0"), "between 0 and 1"), (dict(tables=True), "is not pruned"), (dict(damping=-1.0), "negative"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            SparseGPT(**options)
    for make, message in (
        (lambda: SmoothQuant(alpha=2.0), "alpha = 2"),
        (lambda: SmoothQuant(static=True, tables=True), "what an output head is given is not observed"),
        (lambda: TwoOfFour(pattern="0.5"), "of the method 2:4 can only be '2:4'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(InputError, match="cannot be cut into blocks of 48"):  # the table, before anything is computed
        GPTQ(block=48, tables=True, patterns=("mlp/down",)).compress(llama, CALIBRATION)


def test_tables_are_rounded_too_when_asked(llama):
    made = GPTQ(format="int8", block=16, tables=True, patterns=("mlp/down/kernel$",)).compress(llama, CALIBRATION)
    assert isinstance(made.params["token_embedding"]["embedding"], QTensor)
    assert apart(llama, made) < 1e-3
