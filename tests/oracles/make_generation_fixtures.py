"""Writes the fixtures of tests/inference: what `transformers` makes of logits, and its beam searches.

Needs the `oracle` extra (torch, transformers). Run from anywhere: python make_generation_fixtures.py
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers.generation import logits_process

HERE = pathlib.Path(__file__).parent
VERSIONS = f"torch {torch.__version__}, transformers {transformers.__version__}"
SAMPLERS = (
    dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(min_p=0.2), dict(repetition_penalty=1.7),
    dict(temperature=1.5, top_k=150, top_p=0.95), dict(temperature=0.5, top_k=40, top_p=0.7, min_p=0.1),
    dict(temperature=2.5, top_p=0.99), dict(temperature=0.8, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=0.6),
)  # fmt: skip
BEAMS = (
    dict(num_beams=3, length_penalty=1.0), dict(num_beams=4, length_penalty=0.4), dict(num_beams=4, length_penalty=2.0),
    dict(num_beams=2, length_penalty=0.0),
)  # fmt: skip
NEW, EOS, VOCAB, SPREAD = 8, 2, 23, 0.25


def processors(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """The processors that `generate` makes of these settings, in its order."""
    config = transformers.GenerationConfig(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p or None,
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    tiny = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=5))
    made = tiny._get_logits_processor(
        config, input_ids_seq_length=1, logits_processor=logits_process.LogitsProcessorList()
    )
    return made


def write_sampler(generator):
    logits = 3 * torch.randn(4, 301, generator=generator)
    seen = torch.randint(0, 301, (4, 20), generator=generator)
    arrays = dict(logits=logits.numpy(), seen=seen.numpy().astype(np.int32), versions=VERSIONS)
    for number, settings in enumerate(SAMPLERS):
        arrays[f"settings/{number}"] = repr(settings)
        arrays[f"scores/{number}"] = processors(**settings)(seen, logits.clone()).numpy()
    np.savez_compressed(HERE / "sampler.npz", **arrays)


def write_beams(name, model, inputs, generator):
    model = model.eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embed_positions" not in key:  # sinusoids
                parameter += SPREAD * torch.randn(parameter.shape, generator=generator)
    arrays = {f"weight/{key}": value.detach().numpy() for key, value in model.state_dict().items()}
    arrays |= dict(inputs=inputs.numpy().astype(np.int32), versions=VERSIONS, config=model.config.to_json_string())
    for number, settings in enumerate(BEAMS):
        found = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=NEW, eos_token_id=EOS,
            pad_token_id=0, num_return_sequences=settings["num_beams"], return_dict_in_generate=True,
            output_scores=True,
            early_stopping="never", **settings,
        )  # fmt: skip
        arrays[f"settings/{number}"] = repr(settings)
        arrays[f"sequences/{number}"] = found.sequences.numpy().astype(np.int32)
        arrays[f"scores/{number}"] = found.sequences_scores.numpy()
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    print(name, VERSIONS, (HERE / f"{name}.npz").stat().st_size, "bytes")


def main():
    generator = torch.Generator().manual_seed(0)
    write_sampler(generator)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=VOCAB, max_position_embeddings=32, rms_norm_eps=1e-5,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        )
    )  # fmt: skip
    inputs = torch.randint(3, VOCAB, (3, 5), generator=generator)
    write_beams("beam_llama", llama, inputs, generator)
    marian = transformers.MarianMTModel(
        transformers.MarianConfig(
            encoder_layers=2, decoder_layers=2, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24,
            encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=VOCAB, decoder_vocab_size=VOCAB,
            max_position_embeddings=32, scale_embedding=True, activation_function="relu", dropout=0.0,
            pad_token_id=0, bos_token_id=1, eos_token_id=EOS, decoder_start_token_id=0, forced_eos_token_id=None,
        )
    )  # fmt: skip
    marian.final_logits_bias[0] = torch.linspace(-1, 1, VOCAB)
    marian.final_logits_bias[0, EOS] = 5.0
    write_beams("beam_marian", marian, inputs, generator)


if __name__ == "__main__":
    main()
