"""Compression: models in fewer bits or with fewer numbers, of the same module, and `python -m fmjax.compress`."""

from fmjax.registry import Registry

TABLE = {
    "int8": "fmjax.compress.rounding:Int8",
    "int4": "fmjax.compress.rounding:Int4",
    "nf4": "fmjax.compress.rounding:NF4",
    "fp8": "fmjax.compress.rounding:FP8",
    "mxfp4": "fmjax.compress.rounding:MXFP4",
}
METHODS = Registry("method of compression", TABLE, contract="fmjax.compress.base:Method")
