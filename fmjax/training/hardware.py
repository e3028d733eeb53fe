"""What is known of the chips: peak matrix rates, for MFU."""

# Dense bfloat16 peak of one device as JAX counts devices, in FLOP/s, by `device.device_kind`, from the vendors'
# published figures (cloud.google.com/tpu/docs, nvidia.com data sheets; sparsity not counted).
PEAK_FLOPS = {
    "TPU v2": 22.5e12,  # a v2 or v3 device is one core, half a chip
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153e12,  # one of the chip's two cores
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "Tesla T4": 65e12,  # float16
    "NVIDIA L4": 121e12,
}


def peak_flops(device) -> float | None:
    """Peak matrix rate of one device in FLOP/s, or None when it is not known (never a guess)."""
    return PEAK_FLOPS.get(device.device_kind)
