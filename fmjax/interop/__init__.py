"""Published weights, in and out: Hugging Face folders with config.json and safetensors; in alone: GGUF files.

One file a family (`gpt`, `llama`, `qwen`, `gemma`, `bert`, `marian`, `vit`, `timm_vit`, `mae`, `image_gpt`, `dit`,
`mmdit`, `unet`, `autoencoder_kl`, `stable_diffusion`, `resnet`, `clip`, `siglip`, `swin`) holds its table of weights, a
line each, and that of the keys of config.json beside the fields of the module. The same tables read and write. A new
family is such a file, named in `family.MODULES`, or, of another package, an entry point of the group `fmjax.families`.
A model of several parts, in one folder or in a folder each, is a family whose parts are families.

    weights.py, family.py               what a table, a family and its parts are
    published_config.py, rope.py        config.json, key by key
    published_objective.py              what it says of the objective
    preprocessor.py                     how images are prepared and classes called, as codecs
    safetensors_files.py                the files, a tensor at a time
    gguf.py                             GGUF files in the families' words
    importer.py, loading.py, hub.py     folders and hub ids into models
    exporter.py                         models into folders
"""
