"""Compression: models in fewer bits or with fewer numbers, of the same module, and `python -m fmjax.compress`."""

from fmjax.registry import Registry

TABLE = {
    "int8": "fmjax.compress.rounding:Int8",
    "int4": "fmjax.compress.rounding:Int4",
    "nf4": "fmjax.compress.rounding:NF4",
    "fp8": "fmjax.compress.rounding:FP8",
    "mxfp4": "fmjax.compress.rounding:MXFP4",
    "gptq": "fmjax.compress.calibrated:GPTQ",
    "awq": "fmjax.compress.calibrated:AWQ",
    "smoothquant": "fmjax.compress.calibrated:SmoothQuant",
    "rotate": "fmjax.compress.rotation:Rotate",
    "magnitude": "fmjax.compress.pruning:Magnitude",
    "wanda": "fmjax.compress.pruning:Wanda",
    "sparsegpt": "fmjax.compress.pruning:SparseGPT",
    "2:4": "fmjax.compress.pruning:TwoOfFour",
    "heads": "fmjax.compress.smaller:Heads",
    "layers": "fmjax.compress.smaller:Layers",
}
METHODS = Registry("method of compression", TABLE, contract="fmjax.compress.base:Method")
