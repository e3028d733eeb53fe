"""A residual network of CIFAR-10 as a well-known PyTorch repository writes it: a family from outside fmjax."""

from fmjax.interop.config_keys import Key, Rule, always
from fmjax.interop.family import Family
from fmjax.interop.weights import CONV, Weight, batch_norm, linear


def conv_norm(path: str, name: str, number: int) -> tuple[Weight, ...]:
    kernel = Weight(f"{path}/conv/kernel", f"{name}conv{number}.weight", CONV)
    return (kernel, *batch_norm(f"{path}/norm", f"{name}bn{number}"))


def stage(number: int) -> tuple[Weight, ...]:
    path, name = f"stage_{number}_block_{{layer}}", f"module.layer{number + 1}.{{layer}}."
    return (*conv_norm(f"{path}/unit_0", name, 1), *conv_norm(f"{path}/unit_1", name, 2))


FAMILY = Family(
    architectures=("CifarResNet",),
    model_type="cifar_resnet",
    model="resnet",
    table=(
        *conv_norm("start", "module.", 1),
        *(line for number in range(3) for line in stage(number)),
        *linear("head", "module.linear"),
    ),
    keys=(
        Rule(lambda config, names, known: {"depths": (config.get("num_blocks", int),) * 3},
             lambda module: {"num_blocks": module.depths[0]}),
        Key("num_classes", "num_classes"),
        always(widths=(16, 32, 64), stem_size=16, stem="cifar", block="basic", shortcut="padded", image_size=32,
               num_channels=3),
    ),
    objective={"name": "classification"},
    processor="ViTImageProcessor",
)  # fmt: skip
