"""The FLOP formula against the compiler's own count and against hand calculations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.embed import output_logits
from fmjax.layers.flops import allowed_pairs
from fmjax.models.autoencoder_kl import AutoencoderKL
from fmjax.models.bert import Bert
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.models.mmdit import MMDiT
from fmjax.models.unet import UNet
from fmjax.planning import counts, hlo


@pytest.mark.parametrize("family", [GPT, Llama])
def test_formula_is_the_compilers_count(family):
    """One layer (the compiler counts the body of a scan once), reference attention, which multiplies all T x T pairs:
    what the formula leaves out by counting allowed pairs only is added back. What remains is elementwise."""
    length = 64
    module = family(
        num_layers=1, hidden_size=256, intermediate_size=768, num_heads=2, vocab_size=512, max_length=length,
        attention="reference",
    )  # fmt: skip
    tokens = jnp.zeros((1, length), jnp.int32)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))["params"]

    def loss(params, tokens):
        return jnp.mean(module.apply({"params": params}, tokens) ** 2)

    masked = length * length - length * (length + 1) // 2
    expected = module.flops_per_example({"tokens": (length,)}) + 3 * 4 * masked * 256
    counted = jax.jit(jax.grad(loss)).lower(params, tokens).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("next_sentence", [True, False])
def test_formula_of_bert_is_the_compilers_count(next_sentence):
    """With the transform of the masked-language-model head, and pooler and next-sentence head where there are such."""
    length, size = 32, 256
    module = Bert(
        num_layers=1, hidden_size=size, intermediate_size=256, num_heads=2, vocab_size=256, max_length=length,
        next_sentence=next_sentence, attention="reference",
    )  # fmt: skip
    tokens = jnp.zeros((1, length), jnp.int32)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))["params"]

    def loss(params, tokens):
        if not next_sentence:
            return jnp.mean(module.apply({"params": params}, tokens) ** 2)
        hidden, head, sentence = module.apply({"params": params}, tokens, method="pretraining")
        return jnp.mean(output_logits(hidden, head) ** 2) + jnp.mean(sentence**2)

    counted = jax.jit(jax.grad(loss)).lower(params, tokens).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(module.flops_per_example({"tokens": (length,)}), rel=0.05)


@pytest.mark.parametrize("size, stride, transpose", [(3, 1, False), (4, 2, False), (4, 2, True), (1, 1, False)])
def test_formula_of_a_convolution_is_the_compilers_count(size, stride, transpose):
    module = Conv(48, size, stride, transpose=transpose)
    images = jnp.zeros((1, 8, 8, 32))
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images))["params"]
    loss = lambda params, images: jnp.mean(module.apply({"params": params}, images) ** 2)
    side = 8 if transpose else 8 // stride
    for arguments, first in (((0, 1), False), (0, True)):
        compiled = jax.jit(jax.grad(loss, arguments)).lower(params, images).compile()
        found = counts.count(hlo.parse(compiled.as_text()), {}).flops
        assert found == pytest.approx(conv_flops(side, size, 32, 48, stride, first), rel=1e-6)


def test_formula_by_hand():
    """GPT-2 small at 1,024 tokens: 6 FLOPs per weight and token, and 6 * 2 * 768 per layer and allowed pair."""
    weights = 12 * 12 * 768**2 + 768 * 50257
    by_hand = 6 * 1024 * weights + 12 * (6 * 2 * 768) * (1024 * 1025 // 2)
    assert GPT(vocab_size=50257).flops_per_example({"tokens": (1024,)}) == pytest.approx(by_hand, rel=1e-9)
    # LLaMA 7B: 6.74 billion weights, of which 131 million are looked up.
    seven = Llama(vocab_size=32000, intermediate_size=11008)
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000
    by_hand = 6 * 2048 * weights + 32 * (6 * 2 * 4096) * (2048 * 2049 // 2)
    assert seven.flops_per_example({"tokens": (2048,)}) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_allowed_pairs_are_counted(causal, window):
    counted = sum(
        (not causal or s <= t) and (window is None or abs(t - s) < window) for t in range(20) for s in range(20)
    )
    assert allowed_pairs(20, causal=causal, window=window) == counted


@pytest.mark.parametrize("name", ["unet", "autoencoder", "mmdit"])
def test_formulas_of_nets_of_blocks_are_xlas_count(name):
    """Of the forward pass, a third of what is told, before anything is compiled; wide, so that products are nearly all.
    Each level of the U-Net has another attention."""
    if name == "unet":
        module = UNet(
            image_size=8, num_channels=3, num_classes=0, widths=(256, 384), num_blocks=1, attention=("cross", "self"),
            mid="none", num_heads=(2, 2), num_layers=(1, 1), memory_size=96, time_shift="scale_shift",
        )  # fmt: skip
        inputs = module.example() | {"memory": jax.ShapeDtypeStruct((1, 40, 96), jnp.float32)}
        shapes = {"memory": (40, 96)}
    elif name == "mmdit":
        module = MMDiT(
            image_size=16, num_channels=3, num_layers=2, hidden_size=256, num_heads=2, memory_size=64, vector_size=32,
            attention="reference",
        )  # fmt: skip
        inputs = module.example() | {"memory": jax.ShapeDtypeStruct((1, 40, 64), jnp.float32)}
        shapes = {"memory": (40, 64)}
    else:
        module, shapes = AutoencoderKL(image_size=8, num_channels=3, widths=(256, 384), num_blocks=1), {}
        inputs = module.example()
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), **inputs))["params"]
    lowered = jax.jit(lambda params, inputs: module.apply({"params": params}, **inputs)).lower(params, inputs)
    assert 3 * lowered.cost_analysis()["flops"] == pytest.approx(module.flops_per_example(shapes), rel=0.03)
