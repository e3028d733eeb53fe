"""Writes tests/interop/published/*.npz: published folders with random weights, and what `transformers` computes.

Needs the `oracle` extra (torch, transformers). Run from anywhere: python make_interop_fixtures.py [NAME ...]

A fixture has the folder as `save_pretrained` writes it (`config`, the text of config.json, and `weight/NAME`), and of
the PyTorch class in float32:

    tokens [2, 12], logits [2, 12, V]     two rows, the second padded with the token 1 and masked there
    piece_tokens [2, 6], piece_logits_i   documents to be packed into one row; here each is computed by itself
    loss, gradient/NAME                   for some: of the first row, see `loss_of`
    token_types, source_tokens, ...       further inputs of a family, and the same for the pieces

Every option a family has is on: grouped queries, biases, scaled rotary embedding, windows shorter than the rows.
Weights are drawn with a spread at which attention is far from uniform, and norms and biases matter.
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent.parent / "interop" / "published"
VOCAB, PAD = 29, 1
LENGTHS, PIECES = (12, 7), (6, 5)
SIZES = dict(
    num_hidden_layers=3, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=VOCAB, max_position_embeddings=32, head_dim=8,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=50.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
YARN = dict(
    rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=8, beta_fast=2.0, beta_slow=0.5
)
GPT = dict(n_layer=3, n_embd=16, n_head=2, n_positions=16, vocab_size=VOCAB)
BERT = dict(
    num_hidden_layers=3, hidden_size=16, num_attention_heads=4, intermediate_size=24, vocab_size=VOCAB,
)  # fmt: skip
WITH_GRADIENTS = ("gpt2", "llama", "bert")

CASES = {
    "gpt2": ("GPT2LMHeadModel", dict(**GPT, n_inner=24)),
    "gpt1": ("OpenAIGPTLMHeadModel", dict(GPT)),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        dict(
            num_layers=4, hidden_size=16, num_heads=2, intermediate_size=24, max_position_embeddings=16,
            vocab_size=VOCAB, attention_types=[[["global", "local"], 2]], window_size=4,
        ),
    ),
    "llama": (
        "LlamaForCausalLM",
        dict(**SIZES, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    ),
    "llama_linear": (
        "LlamaForCausalLM",
        dict(
            **SIZES | dict(num_key_value_heads=4, head_dim=4), tie_word_embeddings=True,
            rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
        ),
    ),
    "mistral": (
        "MistralForCausalLM",
        dict(**SIZES, sliding_window=4, rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        dict(**SIZES, rope_parameters=YARN, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        dict(
            **SIZES, rope_parameters=YARN, use_sliding_window=True, sliding_window=5, max_window_layers=2,
            attention_bias=True,
        ),
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        dict(
            **SIZES, sliding_window=4, query_pre_attn_scalar=6, attention_bias=True,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=8.0),
                sliding_attention=dict(rope_type="default", rope_theta=50.0),
            ),
        ),
    ),
    "bert": ("BertForPreTraining", dict(**BERT, max_position_embeddings=16, hidden_act="gelu_new", pad_token_id=PAD)),
    "bert_masked_lm": ("BertForMaskedLM", dict(**BERT, max_position_embeddings=16)),
    "roberta": ("RobertaForMaskedLM", dict(**BERT, max_position_embeddings=18, type_vocab_size=1, pad_token_id=PAD)),
    "marian": (
        "MarianMTModel",
        dict(
            encoder_layers=2, decoder_layers=3, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24,
            encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=VOCAB, decoder_vocab_size=VOCAB,
            max_position_embeddings=32, scale_embedding=True, activation_function="swish", pad_token_id=PAD,
            decoder_start_token_id=PAD, eos_token_id=0, forced_eos_token_id=0,
        ),
    ),
}  # fmt: skip


def build(name: str):
    """The PyTorch model of a case, its weights spread out."""
    architecture, options = CASES[name]
    model_class = getattr(transformers, architecture)
    dropouts = (
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
    )
    fields = model_class.config_class().to_dict()
    options = options | {key: 0.0 for key in dropouts if key in fields}
    model = model_class(model_class.config_class(**options, attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(len(name))
    weights = dict(model.named_parameters()) | {k: v for k, v in model.named_buffers() if k == "final_logits_bias"}
    with torch.no_grad():
        for key, weight in weights.items():
            if "embed_positions" not in key:  # Marian's sinusoids
                weight += 0.25 * torch.randn(weight.shape, generator=generator)
    return model


def rows_of(documents):
    """Documents as int64 [documents, longest], padded at their ends."""
    return torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=PAD)


def inputs_of(name, lengths, generator) -> dict[str, list]:
    """A document's arrays, under fmjax's names, for each length."""

    def draw(low, high, sizes):
        return [torch.randint(low, high, (size,), generator=generator) for size in sizes]

    inputs = {"tokens": draw(PAD + 1, VOCAB, lengths)}
    if name == "bert":
        inputs["token_types"] = draw(0, 2, lengths)
    if name == "marian":
        inputs["source_tokens"] = draw(PAD + 1, VOCAB, [n - 2 + row for row, n in enumerate(lengths)])
    return inputs


def forward(model, inputs):
    """The model's output for documents padded to one length, under a mask."""
    rows = {key: rows_of(documents) for key, documents in inputs.items()}
    mask = (rows["tokens"] != PAD).long()
    if "source_tokens" in rows:
        source = rows["source_tokens"]
        return model(
            source, (source != PAD).long(), decoder_input_ids=rows["tokens"], decoder_attention_mask=mask
        )  # fmt: skip
    if "token_types" in rows:
        return model(rows["tokens"], mask, token_type_ids=rows["token_types"])
    return model(rows["tokens"], attention_mask=mask)


def logits_of(output):
    return output.logits if "logits" in output else output.prediction_logits


def loss_of(name, output, tokens):
    """Mean cross-entropy of the next tokens; for BERT, of the tokens in reverse order, and of the class "not next"."""
    entropy = torch.nn.functional.cross_entropy
    logits = logits_of(output)[0]
    if name == "bert":
        return entropy(logits, tokens.flip(0)) + entropy(output.seq_relationship_logits[:1], torch.tensor([1]))
    return entropy(logits[:-1], tokens[1:])


def make(name: str) -> dict:
    """The arrays of a fixture, as the module's docstring lists them."""
    model = build(name)
    generator = torch.Generator().manual_seed(0)
    inputs = inputs_of(name, LENGTHS, generator)
    output = forward(model, inputs)
    arrays = {key: rows_of(documents) for key, documents in inputs.items()} | {"logits": logits_of(output)}
    if name == "bert":
        arrays["next_sentence_logits"] = output.seq_relationship_logits
    pieces = inputs_of(name, PIECES, generator)
    arrays |= {f"piece_{key}": rows_of(documents) for key, documents in pieces.items()}
    for i in range(len(PIECES)):
        alone = forward(model, {key: documents[i : i + 1] for key, documents in pieces.items()})
        arrays[f"piece_logits_{i}"] = logits_of(alone)[0]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = load_file(f"{folder}/model.safetensors")
        config = (pathlib.Path(folder) / "config.json").read_text()
    arrays |= {f"weight/{key}": value for key, value in saved.items()}
    if name in WITH_GRADIENTS:
        loss = loss_of(name, output, inputs["tokens"][0])
        loss.backward()
        arrays["loss"] = loss
        arrays |= {f"gradient/{key}": p.grad for key, p in model.named_parameters() if key in saved}
    found = {key: value.detach().numpy() for key, value in arrays.items()}
    found = {key: value.astype(np.int32) if value.dtype == np.int64 else value for key, value in found.items()}
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return found | {"config": config, "versions": versions}


def main():
    HERE.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CASES:
        np.savez_compressed(HERE / f"{name}.npz", **make(name))
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
