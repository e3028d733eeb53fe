"""InternImage in the layout of its authors' folders on the hub: the sizes T, S, B, L and XL.

Their class is no part of transformers; folders on the hub bring its code, to which what is written here refers.
"""

from fmjax.errors import ConfigError
from fmjax.interop.config_keys import Constant, Key, Rule, always, ignored
from fmjax.interop.family import Family
from fmjax.interop.preprocessor import default_labels
from fmjax.interop.resnet import numbers
from fmjax.interop.weights import CONV, Weight, batch_norm, conv, linear, norm

CLASSIFIER = "InternImageModelForImageClassification"
STAGES = 4


def _table() -> tuple[Weight, ...]:
    block, layer = "stage_{stage}/blocks", "model.levels.{stage}.blocks.{layer}"
    shrink = "model.levels.{stage}.downsample"
    return (
        *conv("stem_1", "model.patch_embed.conv1"),
        *norm("stem_norm_1", "model.patch_embed.norm1.1"),
        *conv("stem_2", "model.patch_embed.conv2"),
        *norm("stem_norm_2", "model.patch_embed.norm2.1"),
        *conv(f"{block}/core/depthwise", f"{layer}.dcn.dw_conv.0"),
        *norm(f"{block}/core/norm", f"{layer}.dcn.dw_conv.1.1"),
        *linear(f"{block}/core/offset", f"{layer}.dcn.offset"),
        *linear(f"{block}/core/weight", f"{layer}.dcn.mask"),
        *linear(f"{block}/core/value", f"{layer}.dcn.input_proj"),
        *linear(f"{block}/core/out", f"{layer}.dcn.output_proj"),
        *norm(f"{block}/core_norm", f"{layer}.norm1.0"),
        *linear(f"{block}/mlp/up", f"{layer}.mlp.fc1"),
        *linear(f"{block}/mlp/down", f"{layer}.mlp.fc2"),
        *norm(f"{block}/mlp_norm", f"{layer}.norm2.0"),
        Weight(f"{block}/core_scale", f"{layer}.layer_scale1"),
        Weight(f"{block}/mlp_scale", f"{layer}.layer_scale2"),
        *norm("stage_{stage}/norm", "model.levels.{stage}.norm.0"),
        Weight("halve_{stage}/kernel", f"{shrink}.conv.weight", CONV),
        *norm("halve_norm_{stage}", f"{shrink}.norm.1"),
        Weight("last/kernel", "model.conv_head.0.weight", CONV),
        *batch_norm("last_norm", "model.conv_head.1.0"),
        *linear("head", "model.head"),
    )


def _read_ratio(config, names, fields):
    ratio = config.get("mlp_ratio", float, 4.0)
    if ratio != int(ratio):
        config.refuse("mlp_ratio", ratio, "expected a whole number")
    if len(fields["depths"]) != STAGES:
        config.refuse("depths", list(fields["depths"]), f"the published class has {STAGES} stages")
    return {"mlp_ratio": int(ratio)}


def _write_ratio(module):
    if len(module.depths) != STAGES:
        raise ConfigError(f"it has {STAGES} stages, not {len(module.depths)}")
    return {"mlp_ratio": float(module.mlp_ratio)}


def _write_classes(module):
    if not module.num_classes:
        raise ConfigError("it gives no vectors without a head of classes")
    return {"num_classes": module.num_classes, **default_labels(module.num_classes)}


def _write_code(module):
    """Where the class's code lies, as transformers looks for it with `trust_remote_code`."""
    code = "OpenGVLab/internimage_t_1k_224--"
    return {
        "auto_map": {
            "AutoConfig": f"{code}configuration_internimage.InternImageConfig",
            "AutoModelForImageClassification": f"{code}modeling_internimage.{CLASSIFIER}",
        }
    }


INTERNIMAGE = Family(
    # Published configs name the class without a head, and their files have the head all the same.
    architectures=(CLASSIFIER, "InternImageModel"),
    model_type="internimage",
    model="internimage",
    table=_table(),
    keys=(
        Key("channels", "hidden_size", default=64),
        numbers("depths", "depths", (4, 4, 18, 4)),
        numbers("groups", "groups", (4, 8, 16, 32)),
        Rule(_read_ratio, _write_ratio),
        Key("layer_scale", "layer_scale", float, None, null=True),
        Key("offset_scale", "offset_scale", float, 1.0),
        Key("post_norm", "post_norm", bool, False),
        Key("drop_path_rate", "path_dropout", float, 0.0),
        Rule(lambda config, names, fields: {"num_classes": config.get("num_classes", int, 1000)}, _write_classes),
        Key("image_size", "image_size", default=224),  # as `Family.any_image_size`: the published class has no such key
        Rule(lambda config, names, fields: {}, _write_code),
        Constant(
            core_op=("DCNv3", "DCNv3_pytorch"), act_layer="GELU", norm_layer="LN", cls_scale=1.5, drop_rate=0.0,
            drop_path_type="linear", dw_kernel_size=(None, 3),
        ),
        # What the sizes H and G add.
        Constant(
            center_feature_scale=False, level2_post_norm=False, res_post_norm=False, remove_center=False,
            use_clip_projector=False,
        ),
        ignored("with_cp", "level2_post_norm_block_ids"),
        always(num_channels=3, stem_strides=(2, 2), norm_eps=1e-6),
    ),
    prefix="model.",
    renamed=((".gamma1", ".layer_scale1"), (".gamma2", ".layer_scale2")),  # in the authors' files outside of the hub
    ignored=(r"conv_head\.1\.0\.num_batches_tracked",),
    objective={"name": "classification"},
    processor="CLIPImageProcessor",
    any_image_size=True,
)  # fmt: skip
FAMILIES = (INTERNIMAGE,)
