"""Published weights, in and out: Hugging Face folders with config.json and safetensors; in alone: GGUF files.

One file a family (`gpt`, `llama`, `qwen`, `gemma`, `bert`, `marian`) holds its table of weights, a line each, and two
functions between config.json and the fields of the module. The same table reads and writes. A new family is such a
file, named in `family.MODULES`, or, of another package, an entry point of the group `fmjax.families`.

    weights.py, family.py               what a table and a family are
    published_config.py, rope.py        config.json, key by key
    safetensors_files.py                the files, a tensor at a time
    gguf.py                             GGUF files in the families' words
    importer.py, loading.py, hub.py     folders and hub ids into models
    exporter.py                         models into folders
"""
