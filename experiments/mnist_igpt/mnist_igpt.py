"""How a public PyTorch code base of 2020 lays an image GPT out: a family from outside fmjax, of its own decoder."""

import numpy as np

from fmjax.interop.config_keys import Key, always
from fmjax.interop.family import Family
from fmjax.interop.weights import LINEAR, Layout, Weight, linear, norm


def third(index: int) -> tuple[Layout, Layout]:
    """(kernel, bias) of queries, keys or values, whose rows lie one after the other in one tensor."""

    def rows(x: np.ndarray) -> np.ndarray:
        return x[index * (len(x) // 3) : (index + 1) * (len(x) // 3)]

    kernel = Layout(lambda shape: (3 * shape[1], shape[0]), lambda x: rows(x).T)
    return kernel, Layout(lambda shape: (3 * shape[0],), rows)


def product(path: str, name: str, index: int) -> tuple[Weight, Weight]:
    kernel, bias = third(index)
    return Weight(f"{path}/kernel", f"{name}_weight", kernel), Weight(f"{path}/bias", f"{name}_bias", bias)


LAYER = "layers.{layer}"
FAMILY = Family(
    architectures=("MnistImageGPT",),
    model_type="mnist_igpt",
    model="image_gpt",
    table=(
        Weight("token_embedding/embedding", "token_embeddings.weight"),
        Weight("start", "sos"),
        Weight("position_embedding/embedding", "position_embeddings.weight"),
        *product("stack/blocks/attention/query", f"{LAYER}.attn.in_proj", 0),
        *product("stack/blocks/attention/key", f"{LAYER}.attn.in_proj", 1),
        *product("stack/blocks/attention/value", f"{LAYER}.attn.in_proj", 2),
        *linear("stack/blocks/attention/out", f"{LAYER}.attn.out_proj"),
        *linear("stack/blocks/mlp/up", f"{LAYER}.mlp.0"),
        *linear("stack/blocks/mlp/down", f"{LAYER}.mlp.2"),
        *norm("stack/blocks/attention_norm", f"{LAYER}.ln_1"),
        *norm("stack/blocks/mlp_norm", f"{LAYER}.ln_2"),
        *norm("stack/final_norm", "ln_f"),
        Weight("head", "head.weight", LINEAR),
    ),
    keys=(
        Key("n_layer", "num_layers"),
        Key("n_embd", "hidden_size"),
        Key("n_head", "num_heads"),
        Key("vocab_size", "vocab_size"),
        Key("n_positions", "max_length"),
        # What attention gives is added to its normalised input: ln_1's output, not what came into the block, goes on.
        always(placement="normed", activation="gelu"),
    ),
    ignored=(r"clf_head\.(weight|bias)", "centroids"),  # a classifier's head; the palette, which is the codec's
    objective={"name": "causal_pixels"},
)
