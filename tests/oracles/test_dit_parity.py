"""The Diffusion Transformer against diffusers' class: output and every gradient (make_dit_fixture.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.assemble import param_spec
from fmjax.layers.modulation import NO_LABEL
from fmjax.models.dit import DiT

MODULE = DiT(num_layers=2, hidden_size=16, num_heads=2, image_size=8, num_channels=3, num_classes=5, patch_size=2)
EMBEDDER = "transformer_blocks.0.norm1.emb"
BLOCK = {
    "modulation/linear": "norm1.linear", "attention/query": "attn1.to_q", "attention/key": "attn1.to_k",
    "attention/value": "attn1.to_v", "attention/out": "attn1.to_out.0", "mlp/up": "ff.net.0.proj",
    "mlp/down": "ff.net.2",
}  # fmt: skip


def convert(arrays):
    """Parameters (or gradients) by our names."""
    linear = lambda name: {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]}
    blocks = {}
    for ours, theirs in BLOCK.items():
        layers = [linear(f"transformer_blocks.{i}.{theirs}") for i in range(2)]
        folder, _, name = ours.partition("/")
        blocks.setdefault(folder, {})[name] = jax.tree.map(lambda *parts: np.stack(parts), *layers)
    patch = arrays["pos_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(12, 16)
    return {
        "patch_embedding": {"kernel": patch, "bias": arrays["pos_embed.proj.bias"]},
        "time": {
            "inner": linear(f"{EMBEDDER}.timestep_embedder.linear_1"),
            "outer": linear(f"{EMBEDDER}.timestep_embedder.linear_2"),
        },
        "label": {"embedding": arrays[f"{EMBEDDER}.class_embedder.embedding_table.weight"]},
        "stack": {"blocks": blocks},
        "final_modulation": {"linear": linear("proj_out_1")},
        "head": linear("proj_out_2"),
    }


def test_output_and_gradients_are_those_of_diffusers():
    fixture = np.load(pathlib.Path(__file__).parent / "dit.npz")
    weights, gradients = (
        convert({k.partition("/")[2]: fixture[k] for k in fixture if k.startswith(kind)})
        for kind in ("weight/", "gradient/")
    )
    images, target = (jnp.asarray(fixture[name].transpose(0, 2, 3, 1)) for name in ("images", "target"))
    labels = jnp.where(fixture["labels"] == 5, NO_LABEL, fixture["labels"])

    @jax.jit
    def forward(params):
        out = MODULE.apply({"params": params}, images, fixture["times"] / 1000, labels)
        return (out * target).sum(), out

    shapes = param_spec(MODULE, MODULE.example())[0]
    assert jax.tree.map(np.shape, weights) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    found, out = jax.grad(forward, has_aux=True)(weights)
    np.testing.assert_allclose(out, fixture["out"].transpose(0, 2, 3, 1), atol=1e-4 * np.abs(fixture["out"]).max())
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(gradients), strict=True
    ):
        scale = max(np.abs(theirs).max(), 0.3)  # of the keys' biases it is zero, but for rounding
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path))
