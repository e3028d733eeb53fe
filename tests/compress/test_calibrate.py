"""What products are given in calibration: the sums of what taps read, of any module, on any split; block by block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.compress.calibrate import by_block, gather
from fmjax.compress.stacks import find_stacks
from fmjax.errors import InputError
from fmjax.interop.loading import placed
from fmjax.layers.transformer import unstack_layers
from fmjax.models.llama import Llama
from fmjax.parallel.placement import Placement
from tests.quick_keys import quick_key
from tests.small_models import applied
from tests.tiny_decoder import TinyDecoder
from tests.two_towers import MODEL as TOWERS

MODULE = Llama(
    num_layers=3, hidden_size=16, intermediate_size=24, num_heads=4, num_kv_heads=2, vocab_size=32, max_length=16,
    window=4, layer_pattern=("local", "global"), init_std=0.3,
)  # fmt: skip
DRAWN = np.random.default_rng(0)
LENGTHS = np.array([10, 6, 9, 10])
BATCHES = [
    {
        "tokens": DRAWN.integers(0, 32, (2, 10), np.int32),
        "segment_ids": (np.arange(10) < LENGTHS[2 * i : 2 * i + 2, None]).astype(np.int32),
    }
    for i in range(2)
]
INPUTS = {
    "attention_in": ("attention/query", "attention/key", "attention/value"), "attention_heads": ("attention/out",),
    "mlp_in": ("mlp/gate", "mlp/up"), "mlp_hidden": ("mlp/down",),
}  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(MODULE.init)(quick_key(0), BATCHES[0]["tokens"])["params"])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def expected_of(params):
    """Of what the taps read, layer by layer: {layer's path: {sum: [layers, ...]}}."""
    found = {}
    for batch in BATCHES:
        reads = applied(MODULE, {"params": params}, batch["tokens"], batch["segment_ids"], mutable=("reads",))[1]
        for name, layers in INPUTS.items():
            blocks = reads["reads"]["stack"]["blocks"]
            x = blocks[name] if name in blocks else blocks[name.partition("_")[0]][name]
            x = np.asarray(x, np.float64).reshape(3, 2, 10, -1)[:, batch["segment_ids"] > 0]
            sums = {
                "gram": np.einsum("lni,lnj->lij", x, x), "count": np.full(3, x.shape[1]),
                "absolute": np.abs(x).sum(1), "square": (x * x).sum(1), "largest": np.abs(x).max(1),
            }  # fmt: skip
            for layer in layers:
                before = found.get(layer)
                join = lambda key: np.maximum if key == "largest" else np.add  # noqa: E731
                found[layer] = sums if before is None else {k: join(k)(before[k], sums[k]) for k in sums}
    return found


def flat(told):
    return {"gram": told["gram"], **told["channels"]}


def test_sums_are_of_what_taps_read_scanned_or_not(params):
    expected = expected_of(params)
    found = gather(MODULE, {"params": params}, BATCHES, ("gram", "channels"))
    assert set(found) == {f"stack/blocks/{layer}" for layer in expected}
    for layer, sums in expected.items():
        for key, value in flat(found[f"stack/blocks/{layer}"]).items():
            close(value, sums[key])
    plain = MODULE.clone(scan_layers=False)
    only = ("stack/blocks_2/mlp/down", "stack/blocks_0/attention/query")
    alone = gather(plain, {"params": unstack_layers(params)}, BATCHES, ("gram",), only)
    assert set(alone) == set(only)
    close(alone[only[0]]["gram"], expected["mlp/down"]["gram"][2])
    close(alone[only[1]]["gram"], expected["attention/query"]["gram"][0])


def test_sums_of_a_split_model_are_those_of_one_device(params):
    placement = Placement.make({"data": 2, "fsdp": 2, "tensor": 2})
    split = jax.device_put(params, placed(MODULE, placement)[1])
    with placement.inference():
        found = gather(MODULE, {"params": split}, BATCHES, ("gram",), ["stack/blocks/mlp/down"])
    close(found["stack/blocks/mlp/down"]["gram"], expected_of(params)["mlp/down"]["gram"])


@pytest.mark.parametrize("scanned", [True, False])
def test_a_block_is_calibrated_whole_and_the_next_on_what_it_became(params, scanned):
    module = MODULE if scanned else MODULE.clone(scan_layers=False)
    given = params if scanned else unstack_layers(params)
    seen = []

    def change(path, layer, block, sums):
        seen.append((path, layer, sums))
        return jax.tree.map(lambda x: 0.5 * x, block)

    made = by_block(module, {"params": given}, BATCHES, change, ("gram",))
    jax.tree.map(close, made["stack"], (lambda t: t if scanned else unstack_layers(t))(halved(params["stack"], 3)))
    assert [(path, layer) for path, layer, _ in seen] == [("stack", i) for i in range(3)]
    for layer, (_, _, sums) in enumerate(seen):
        before = {**params, "stack": halved(params["stack"], layer)}
        for name, told in expected_of(before).items():
            close(sums[name]["gram"], told["gram"][layer])


def halved(stack, layers):
    """With the first blocks halved."""
    factor = lambda x: jnp.where(jnp.arange(3) < layers, 0.5, 1.0).reshape(3, *[1] * (x.ndim - 1))  # noqa: E731
    return {**stack, "blocks": jax.tree.map(lambda x: x * factor(x), stack["blocks"])}


def test_towers_are_gone_through_one_after_the_other_without_their_padding():
    drawn = np.random.default_rng(1)
    batch = {
        "images": drawn.normal(size=(3, 8, 8, 1)).astype(np.float32),
        "tokens": drawn.integers(0, 250, (3, 7), np.int32),
        "segment_ids": np.array([[1] * 7, [1] * 3 + [0] * 4, [1] * 5 + [0] * 2], np.int32),
    }
    counts = {}

    def change(path, layer, block, sums):
        counts[path] = {name: float(told["channels"]["count"]) for name, told in sums.items()}
        return block

    assert list(find_stacks(TOWERS.module, TOWERS.variables, batch)) == ["vision/stack", "text/stack"]
    params = by_block(TOWERS.module, TOWERS.variables, [batch], change, ("channels",))
    jax.tree.map(np.testing.assert_array_equal, params, TOWERS.params)
    assert set(counts["vision/stack"].values()) == {3.0 * 5} and set(counts["text/stack"].values()) == {15.0}
    found = gather(TOWERS.module, TOWERS.variables, [batch], ("channels",))
    count = lambda path: found[path]["channels"]["count"]  # noqa: E731
    assert count("vision/patch_embedding") == 12 and count("text_projection") == 3
    np.testing.assert_array_equal(count("text/stack/blocks/mlp/up"), [15.0])


def test_what_has_no_stack_is_refused_by_name(params):
    with pytest.raises(InputError, match="there is no stack 'stak'; did you mean 'stack'"):
        by_block(MODULE, {"params": params}, BATCHES, lambda *_: None, ("gram",), only=["stak"])
    tokens = {"tokens": np.zeros((1, 4), np.int32)}
    bare = jax.eval_shape(TinyDecoder().init, jax.random.key(0), tokens["tokens"])
    with pytest.raises(InputError, match="TinyDecoder has no Transformer stack to go through block by block"):
        by_block(TinyDecoder(), bare, [tokens], lambda *_: None, ("gram",))
