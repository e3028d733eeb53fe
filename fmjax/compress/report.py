"""What compression saves: bytes, and bits a number."""

from fmjax.compress.base import named
from fmjax.inference.model import Model
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import count, num_bytes


def told(before: Model, after: Model) -> str:
    """Lines for people: bytes of all parameters before and after, and bits a number, with their scales, of those of few
    bits and of all."""
    sizes = num_bytes(before.params), num_bytes(after.params)
    packed = [x for x in named(after.params).values() if isinstance(x, QTensor)]
    lines = [f"{sizes[0]:,} bytes before, {sizes[1]:,} after: {sizes[0] / sizes[1]:.2f} times less"]
    if packed:
        own, bits = count(packed), 8 * num_bytes(packed)
        lines.append(f"{bits / own:.3f} bits a weight in {len(packed)} parameters of {own:,} numbers")
    lines.append(f"{8 * sizes[1] / count(after.params):.3f} bits a weight in all {count(after.params):,}")
    return "\n".join(lines)
