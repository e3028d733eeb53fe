"""Writes the fixtures of test_magneto_parity.py: random weights and what TorchScale computes from them.

Needs torch, torchscale, fairscale and timm. TorchScale is the code of the paper's authors. Run from anywhere.
"""

import importlib.metadata
import pathlib

import numpy as np
import torch
from torchscale.architecture.config import DecoderConfig, EncoderConfig
from torchscale.architecture.decoder import Decoder
from torchscale.architecture.encoder import Encoder
from torchscale.component.embedding import PositionalEmbedding, TextEmbedding

HERE = pathlib.Path(__file__).parent
BATCH, LENGTH, VOCAB, WIDTH = 2, 11, 23, 16
COMMON = dict(
    subln=True, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, vocab_size=VOCAB, no_output_layer=True
)


def model(side: str):
    sizes = {f"{side}_{name}": value for name, value in
             dict(layers=2, embed_dim=WIDTH, ffn_embed_dim=24, attention_heads=2,
                  normalize_before=True).items()}  # fmt: skip
    embeddings = dict(embed_tokens=TextEmbedding(VOCAB, WIDTH), embed_positions=PositionalEmbedding(18, WIDTH))
    if side == "decoder":
        return Decoder(DecoderConfig(**sizes, **COMMON), **embeddings)
    return Encoder(EncoderConfig(**sizes, **COMMON), **embeddings)


def main():
    torch.manual_seed(0)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH))
    target = torch.randn(BATCH, LENGTH, VOCAB)
    for side in ("decoder", "encoder"):
        module = model(side).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.25 * torch.randn(parameter.shape)
        if side == "decoder":
            mask = torch.triu(torch.full((LENGTH, LENGTH), -torch.inf), 1)
            hidden = module(tokens, self_attn_mask=mask, features_only=True)[0]
        else:
            hidden = module(tokens)["encoder_out"]
        logits = hidden @ module.embed_tokens.weight.T
        (logits * target).sum().backward()
        parameters = dict(module.named_parameters())
        arrays = {f"weight/{name}": value.detach().numpy() for name, value in parameters.items()}
        arrays |= {
            f"gradient/{name}": value.grad.numpy() for name, value in parameters.items() if value.grad is not None
        }
        arrays |= dict(tokens=tokens.numpy().astype(np.int32), target=target.numpy(), logits=logits.detach().numpy())
        arrays["versions"] = f"torch {torch.__version__}, torchscale {importlib.metadata.version('torchscale')}"
        np.savez_compressed(HERE / f"magneto_{side}.npz", **arrays)
        print(side, arrays["versions"], sorted(parameters))


if __name__ == "__main__":
    main()
