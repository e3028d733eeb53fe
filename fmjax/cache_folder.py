"""Where commands keep what is worth keeping between runs: prepared data, tokenizers, compiled programs.

Only commands and notebooks call this; library functions take the folder as an argument.
"""

import os
import pathlib

import jax


def cache_dir() -> pathlib.Path:
    """`$FMJAX_CACHE`, or `~/.cache/fmjax`."""
    return pathlib.Path(os.environ.get("FMJAX_CACHE") or pathlib.Path.home() / ".cache" / "fmjax").expanduser()


def use_compilation_cache() -> None:
    """Keeps compiled programs under `cache_dir()`, unless JAX's own setting already names a folder."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
