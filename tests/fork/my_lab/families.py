"""How this lab publishes its decoders: LLaMA's function, under names of its own."""

import dataclasses

from fmjax.interop.family import Family
from fmjax.interop.llama import LLAMA

LAB = Family(
    architectures=("LabForCausalLM",),
    model_type="lab",
    model="llama",
    table=[dataclasses.replace(w, name=w.name.replace("model.layers", "lab.blocks")) for w in LLAMA.table],
    keys=LLAMA.keys,
)
