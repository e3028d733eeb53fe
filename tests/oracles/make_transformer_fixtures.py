"""Writes the fixtures of test_transformers_parity.py: random weights and what `transformers` computes from them.

Needs the `oracle` extra (torch, transformers). Run from anywhere: python make_transformer_fixtures.py
Weights are drawn with a spread at which attention is far from uniform and biases and norms matter; they are stored
under the names of the published checkpoints, so the test's table is the one that an importer would use.
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
BATCH, LENGTH, VOCAB = 2, 14, 29


def models():
    common = dict(vocab_size=VOCAB, attn_implementation="eager")
    yield "gpt2", transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=2, n_embd=16, n_head=2, n_inner=24, n_positions=16,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common,
        )
    )  # fmt: skip
    llama = dict(
        num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=4, rms_norm_eps=1e-5,
        max_position_embeddings=32, **common,
    )  # fmt: skip
    yield (
        "llama",
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **llama, num_key_value_heads=4, rope_parameters=dict(rope_type="default", rope_theta=10000.0)
            )
        ),
    )
    yield "mistral", transformers.MistralForCausalLM(
        transformers.MistralConfig(
            **llama, num_key_value_heads=2, head_dim=6, sliding_window=5, tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        )
    )  # fmt: skip


def main():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=generator)
    for name, model in models():
        model = model.eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.25 * torch.randn(parameter.shape, generator=generator)
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))
        loss.backward()
        parameters = dict(model.named_parameters())
        arrays = {f"weight/{key}": value.detach().numpy() for key, value in parameters.items()}
        arrays |= {f"gradient/{key}": value.grad.numpy() for key, value in parameters.items() if value.grad is not None}
        arrays |= dict(tokens=tokens.numpy().astype(np.int32), logits=logits.detach().numpy(), loss=loss.item())
        arrays["versions"] = f"torch {torch.__version__}, transformers {transformers.__version__}"
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        print(name, arrays["versions"], (HERE / f"{name}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
