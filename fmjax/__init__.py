"""fmjax: foundation models in JAX, from one core to a TPU slice."""

__version__ = "0.1.0"
