"""Swin Transformers, with a head of classes or, for embeddings of images, without one."""

import numpy as np

from fmjax.interop.bert import ACTIVATIONS
from fmjax.interop.config_keys import INIT_STD, Constant, Key, always, ignored
from fmjax.interop.family import Family
from fmjax.interop.resnet import numbers
from fmjax.interop.vit import CLASSES, side
from fmjax.interop.weights import CONV, SAME, Layout, Weight, conv, linear, norm


def _row_by_row(x: np.ndarray) -> np.ndarray:
    """Channels [4 D, ...] of 2 x 2 places, which lie there column by column: here they are row by row."""
    return x.reshape(2, 2, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


PLACES = Layout(SAME.shape, _row_by_row)
PRODUCT_OF_PLACES = Layout(lambda shape: shape[::-1], lambda x: _row_by_row(x.T))


def _body(root: str) -> tuple[Weight, ...]:
    block, layer = "stage_{stage}/blocks", f"{root}encoder.layers.{{stage}}.blocks.{{layer}}"
    shrink, merging = "shrink_{stage}", f"{root}encoder.layers.{{stage}}.downsample"
    return (
        *conv("stem/convolution", f"{root}embeddings.patch_embeddings.projection", CONV),
        *norm("stem/norm", f"{root}embeddings.norm"),
        *linear(f"{block}/attention/query", f"{layer}.attention.self.query"),
        *linear(f"{block}/attention/key", f"{layer}.attention.self.key"),
        *linear(f"{block}/attention/value", f"{layer}.attention.self.value"),
        Weight(f"{block}/attention/place_bias", f"{layer}.attention.self.relative_position_bias_table"),
        *linear(f"{block}/attention/out", f"{layer}.attention.output.dense"),
        *linear(f"{block}/mlp/up", f"{layer}.intermediate.dense"),
        *linear(f"{block}/mlp/down", f"{layer}.output.dense"),
        *norm(f"{block}/attention_norm", f"{layer}.layernorm_before"),
        *norm(f"{block}/mlp_norm", f"{layer}.layernorm_after"),
        Weight(f"{shrink}/norm/scale", f"{merging}.norm.weight", PLACES),
        Weight(f"{shrink}/norm/bias", f"{merging}.norm.bias", PLACES),
        Weight(f"{shrink}/product/kernel", f"{merging}.reduction.weight", PRODUCT_OF_PLACES),
        *norm("last_norm", f"{root}layernorm"),
    )


KEYS = (
    side("image_size", "image_size", 224),
    side("patch_size", "patch_size", 4),
    Key("num_channels", "num_channels", default=3),
    Key("embed_dim", "embed_size", default=96),
    numbers("depths", "depths", (2, 2, 6, 2)),
    numbers("num_heads", "num_heads", (3, 6, 12, 24)),
    Key("window_size", "window", default=7),
    Key("mlp_ratio", "mlp_ratio", float, 4.0),
    Key("qkv_bias", "qkv_bias", bool, True),
    Key("hidden_act", "activation", default="gelu", words=ACTIVATIONS),
    Key("hidden_dropout_prob", "dropout", float, 0.0),
    Key("attention_probs_dropout_prob", "attention_dropout", float, 0.0),
    Key("drop_path_rate", "drop_path", float, 0.1),
    Key("layer_norm_eps", "norm_eps", float, 1e-5),
    INIT_STD,
    Constant(use_absolute_embeddings=False),
    ignored("encoder_stride", "hidden_size", "num_layers", "num_hidden_layers", "path_norm", "out_features",
            "out_indices", "stage_names"),
    always(embeddings="patches"),
)  # fmt: skip
INDEX = (r"attention\.self\.relative_position_index",)
SWIN = Family(
    architectures=("SwinForImageClassification",),
    model_type="swin",
    model="swin",
    table=(*_body("swin."), *linear("head", "classifier")),
    keys=(*KEYS, CLASSES),
    prefix="swin.",
    ignored=INDEX,
    objective={"name": "classification"},
    processor="ViTImageProcessor",
)
SWIN_HEADLESS = Family(
    architectures=("SwinModel",),
    model_type="swin",
    model="swin",
    table=_body(""),
    keys=(*KEYS, always(num_classes=0)),
    prefix="swin.",
    ignored=INDEX,
    is_bare=True,
    processor="ViTImageProcessor",
)

FAMILIES = (SWIN, SWIN_HEADLESS)
