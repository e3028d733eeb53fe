"""Residual networks, with a head of classes or, for embeddings of images, without one."""

from fmjax.interop.config_keys import Constant, Key, Rule, always, ignored
from fmjax.interop.family import Family
from fmjax.interop.vit import CLASSES
from fmjax.interop.weights import CONV, Weight, batch_norm, linear


def _conv_norm(path: str, name: str) -> tuple[Weight, ...]:
    kernel = Weight(f"{path}/conv/kernel", f"{name}.convolution.weight", CONV)
    return (kernel, *batch_norm(f"{path}/norm", f"{name}.normalization"))


def _body(root: str) -> tuple[Weight, ...]:
    block, layer = "stage_{stage}_block_{layer}", f"{root}encoder.stages.{{stage}}.layers.{{layer}}"
    return (
        *_conv_norm("start", f"{root}embedder.embedder"),
        *_conv_norm(f"{block}/unit_{{unit}}", f"{layer}.layer.{{unit}}"),
        *_conv_norm(f"{block}/shortcut", f"{layer}.shortcut"),
    )


def numbers(key: str, field: str, default: tuple[int, ...]) -> Rule:
    """A number a stage."""
    return Rule(
        lambda config, names, fields: {field: tuple(config.get(key, list, list(default)))},
        lambda module: {key: list(getattr(module, field))},
    )


KEYS = (
    Key("embedding_size", "stem_size", default=64),
    numbers("hidden_sizes", "widths", (256, 512, 1024, 2048)),
    numbers("depths", "depths", (3, 4, 6, 3)),
    Key("layer_type", "block", str, "bottleneck", words={"bottleneck": "bottleneck", "basic": "basic"}),
    Key("downsample_in_first_stage", "halve_first", bool, False),
    Key("downsample_in_bottleneck", "halve_early", bool, False),
    Key("num_channels", "num_channels", default=3),
    Key("image_size", "image_size", default=224),  # `Family.any_image_size`: transformers' class has no such key
    Constant(hidden_act="relu"),
    ignored("out_features", "out_indices", "stage_names"),
    always(stem="imagenet", shortcut="projection"),
)
COUNTS = (r"normalization\.num_batches_tracked",)
RESNET = Family(
    architectures=("ResNetForImageClassification",),
    model_type="resnet",
    model="resnet",
    table=(*_body("resnet."), *linear("head", "classifier.1")),
    keys=(*KEYS, CLASSES),
    prefix="resnet.",
    ignored=COUNTS,
    objective={"name": "classification"},
    processor="ConvNextImageProcessor",
    any_image_size=True,
)
RESNET_HEADLESS = Family(
    architectures=("ResNetModel",),
    model_type="resnet",
    model="resnet",
    table=_body(""),
    keys=(*KEYS, always(num_classes=0)),
    prefix="resnet.",
    is_bare=True,
    ignored=COUNTS,
    processor="ConvNextImageProcessor",
    any_image_size=True,
)

FAMILIES = (RESNET, RESNET_HEADLESS)
