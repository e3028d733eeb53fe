"""Image GPT: decoders of an image's colours."""

from fmjax.interop.config_keys import Constant, Expected, Key, always
from fmjax.interop.family import Family
from fmjax.interop.gpt import ACTIVATIONS, SIZES, conv1d_blocks
from fmjax.interop.weights import LINEAR, Layout, Weight, norm


def _start(module) -> Layout:
    """The vector that begins an image: the last row of the embedding."""
    return Layout(lambda shape: (module.vocab_size, *shape), lambda x: x[-1])


COLOURS = Layout(lambda shape: (shape[0] + 1, shape[1]), lambda x: x[:-1])

IMAGE_GPT = Family(
    architectures=("ImageGPTForCausalImageModeling",),
    model_type="imagegpt",
    model="image_gpt",
    table=(
        Weight("token_embedding/embedding", "transformer.wte.weight", COLOURS),
        Weight("start", "transformer.wte.weight", _start),
        Weight("position_embedding/embedding", "transformer.wpe.weight"),
        *conv1d_blocks("transformer.h.{layer}"),
        *norm("stack/final_norm", "transformer.ln_f"),
        Weight("head", "lm_head.weight", LINEAR),
    ),
    keys=(
        *SIZES,
        Key("n_inner", "intermediate_size", default=None),
        Key(
            "activation_function", "activation", default="quick_gelu", words=ACTIVATIONS | {"quick_gelu": "quick_gelu"}
        ),
        Constant(tie_word_embeddings=False),
        Expected(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
        Expected(reorder_and_upcast_attn=(False, True)),  # about precision
        always(norm="rmsnorm"),
    ),
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    objective={"name": "causal_pixels"},
    processor="ImageGPTImageProcessor",
)
FAMILIES = (IMAGE_GPT,)
