"""Images as sequences of patches, and back."""

import jax

from fmjax.errors import ConfigError


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """[B, H, W, C] -> [B, (H / p) * (W / p), p * p * C], patches and pixels row by row.

    Raises ConfigError when the sides do not divide by the patch size.
    """
    batch, height, width, channels = images.shape
    check_patches(height, width, patch_size)
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, rows, patch_size, columns, patch_size, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, rows * columns, patch_size * patch_size * channels)


def check_patches(height: int, width: int, patch_size: int) -> None:
    """Raises ConfigError for images whose sides do not divide by the patch size."""
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"images of {height}x{width} pixels do not divide into patches of {patch_size}x{patch_size}; change the "
            "model's patch_size, or the data's image_size"
        )


def unpatchify(patches: jax.Array, patch_size: int, height: int, width: int) -> jax.Array:
    """The inverse of `patchify`: [B, N, p * p * C] -> [B, H, W, C]."""
    rows, columns = height // patch_size, width // patch_size
    grid = patches.reshape(patches.shape[0], rows, columns, patch_size, patch_size, -1).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(patches.shape[0], height, width, -1)
