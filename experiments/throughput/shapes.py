"""What is measured: model shapes by name, as `transformers` describes them, and the batch of a step."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """One model and its batch.

    Attributes:
      kind: class of `transformers` that holds the fields.
      fields: of that class; dropout is off.
      batch, length: rows and tokens of a step.
      dtype: of the products; parameters and optimizer are float32 everywhere.
      remat: fmjax's `model.remat`; anything but "none" turns on gradient checkpointing of the other side too.
      unroll: fmjax's `model.unroll`, layers per iteration of its scan.
      chunk_size: fmjax's `objective.chunk_size`, positions of a row whose logits exist at the same time.
    """

    kind: str
    fields: dict
    batch: int
    length: int
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    chunk_size: int | None = None


def gpt2(layers: int, width: int, heads: int, vocabulary: int, length: int, **batch) -> Shape:
    """A GPT-2, its embeddings tied."""
    fields = dict(n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=length)
    fields |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return Shape("GPT2Config", fields, length=length, **batch)


def llama(
    layers: int, width: int, inner: int, heads: int, vocabulary: int, length: int, kv_heads: int | None = None, **batch
) -> Shape:
    """A LLaMA with as many heads of keys and values as of queries; with `kv_heads`, grouped and its embeddings tied."""
    fields = dict(num_hidden_layers=layers, hidden_size=width, intermediate_size=inner, num_attention_heads=heads)
    fields |= dict(num_key_value_heads=kv_heads or heads, vocab_size=vocabulary, max_position_embeddings=length)
    fields |= dict(tie_word_embeddings=kv_heads is not None)
    return Shape("LlamaConfig", fields, length=length, **batch)


SHAPES = {
    # Two cores. GPT-2's own vocabulary, where the head is more than half of the work, and a small one.
    "gpt2-6x384": gpt2(6, 384, 6, 50257, 256, batch=16, unroll=6),
    "gpt2-6x384-8k": gpt2(6, 384, 6, 8192, 256, batch=16, unroll=6),
    "llama-6x384-8k": llama(6, 384, 1024, 6, 8192, 256, batch=16, unroll=6),
    # What a laptop trains.
    "gpt2-4x128": gpt2(4, 128, 4, 8192, 128, batch=16, unroll=4),
    # A published model's size, fine-tuned: SmolLM2-135M.
    "smollm2-135m": llama(30, 576, 1536, 9, 49152, 256, kv_heads=3, batch=4),
    # One GPU of 80 GB. Vocabularies are padded to a multiple of 128, as both libraries are advised to.
    "gpt2-124m": gpt2(12, 768, 12, 50304, 1024, batch=32, dtype="bfloat16"),
    "llama-1.3b": llama(24, 2048, 5504, 16, 32000, 2048, batch=8, dtype="bfloat16", remat="dots"),
    # For the tests of this study itself.
    "gpt2-tiny": gpt2(2, 32, 2, 4096, 32, batch=2),
    "llama-tiny": llama(2, 32, 64, 2, 4096, 32, batch=2),
}
CPU = ("gpt2-6x384", "gpt2-6x384-8k", "llama-6x384-8k", "gpt2-4x128")
GPU = ("gpt2-124m", "llama-1.3b")
