"""Supervised fine-tuning, DPO and rollouts of a model of SmolLM2-135M's shape, by fmjax and by TRL, the same random
weights:

    pip install -e '.[oracle]'
    python experiments/throughput/chats.py [sft] [dpo] [rollout]

A step of `sft` is of 4 chats of 257 tokens, of `dpo` of 2 pairs of such chats, the second half of each the reply, with
the reference model in the step. AdamW, gradients clipped to norm 1, float32, no dropout. TRL's trainers compute their
own losses (`SFTTrainer.compute_loss`, `DPOTrainer.compute_loss`) with `sdpa` attention, and a fused AdamW takes their
steps. A `rollout` is 8 replies of 64 tokens to each of 4 prompts of 128, drawn at temperature 1 from parameters that
have just changed, by `GRPOTrainer`'s own generation and by what our objectives draw with. A process a side; after a
warm-up they take turns. Prints medians of seconds and of the processor's (of all threads), the median of the turns'
ratios, and by how much the losses (of dpo: the log-probability of the better reply; of a rollout: the number of drawn
tokens) differ, and each side's memory at its highest.
"""

import os
import pathlib
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from shapes import SHAPES  # noqa: E402
from sides import ADAMW, make_weights  # noqa: E402
from turns import measure, serve  # noqa: E402

KINDS = ("sft", "dpo", "rollout")
SHAPE = SHAPES["smollm2-135m"]
CHATS, LENGTH, PROMPT = 4, SHAPE.length, SHAPE.length // 2
SAMPLES, NEW = 8, 64


def chats_of(number: int, kind: str) -> np.ndarray:
    """int32 [4, 257]; of dpo two better replies and then two worse ones, of the same prompts."""
    draw = np.random.default_rng(number)
    tokens = draw.integers(3, SHAPE.fields["vocab_size"], (CHATS, LENGTH + 1)).astype(np.int32)
    if kind == "dpo":
        tokens[2:, :PROMPT] = tokens[:2, :PROMPT]
    return tokens


def fmjax_step(folder: str, kind: str):
    """A function that makes step number N and says what is compared."""
    from fmjax import cpu

    cpu.set_up_training()  # as `fmjax.train` does
    import jax

    import fmjax
    from fmjax.assemble import build_module
    from fmjax.config import resolve
    from fmjax.interop.loading import model_section
    from fmjax.training.program import make_program

    objective = {"name": "causal_lm"} if kind == "sft" else {"name": "dpo", "beta": 0.1, "reference": folder}
    config = resolve({
        "train": {"steps": 1000, "batch_size": CHATS if kind == "sft" else CHATS // 2}, "mesh": {"data": 1},
        "model": model_section(folder), "objective": objective, "data": {"name": "preferences"},
        "optimizer": {"name": "adamw", "clip_norm": 1.0, **ADAMW},
    })  # fmt: skip

    def batch_of(number: int) -> dict[str, np.ndarray]:
        tokens = chats_of(number, kind)
        rows = {
            "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": np.ones((CHATS, LENGTH), np.int32),
            "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (CHATS, 1)),
            "loss_weights": np.tile((np.arange(LENGTH) >= PROMPT - 1).astype(np.float32), (CHATS, 1)),
        }  # fmt: skip
        if kind == "sft":
            return rows
        pairs = {name: np.stack([x[:2], x[2:]], axis=1) for name, x in rows.items()}
        ones = np.ones((2, 2), np.float32)
        return pairs | {"scores": ones * [1.0, 0.0], "answer_weights": ones, "margins": ones[:, 0]}

    described = lambda x: jax.ShapeDtypeStruct(x.shape[1:], np.int32 if x.dtype == np.int32 else np.float32)
    example = {name: described(x) for name, x in batch_of(0).items()}
    program = make_program(config, build_module(config, {}), example, jax.devices()[:1])
    state, run_step = [program.init(fmjax.load(folder).params)], program.compile_train_step()

    def step(number: int) -> float:
        batch = {name: x.astype(example[name].dtype) for name, x in batch_of(number).items()}
        batch = jax.device_put(batch, program.batch_sharding)
        state[0], metrics = run_step(state[0], batch, program.key, *program.others)
        return float(metrics["loss" if kind == "sft" else "better_logprob"])

    return step


def fmjax_rollout(folder: str):
    """As `fmjax_step`; says how many tokens were drawn."""
    import dataclasses

    import jax

    import fmjax

    model = fmjax.load(folder)
    changed = jax.jit(lambda params: jax.tree.map(lambda x: x * 1.0, params), donate_argnums=0)
    params = [model.params]

    def step(number: int) -> int:
        params[0] = changed(params[0])
        now = dataclasses.replace(model, params=params[0], kept={})
        prompts = chats_of(number, "rollout")[:, :PROMPT].tolist()
        replies = now.complete(
            prompts, num_samples=SAMPLES, temperature=1.0, seed=number, max_new_tokens=NEW, batch_size=CHATS * SAMPLES,
            cache_length=PROMPT + NEW,
        )  # fmt: skip
        return sum(len(reply.tokens) for reply in replies)

    return step


def trl_trainer(folder: str, kind: str):
    """TRL's trainer of a model; its own rows are made from a word, and none of them is used."""
    import datasets
    import tokenizers
    import torch
    import transformers
    import trl

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    model = lambda: transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    fields = dict(
        output_dir=folder + "/trl", per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    if kind == "sft":
        rows = datasets.Dataset.from_list([{"prompt": "a", "completion": " a"}] * 4)
        args = trl.SFTConfig(**fields)
        return trl.SFTTrainer(model(), args=args, train_dataset=rows, processing_class=tokenizer)
    if kind == "rollout":
        rows = datasets.Dataset.from_list([{"prompt": "a"}] * 32)
        del fields["max_length"]
        fields["per_device_train_batch_size"] = CHATS * SAMPLES
        args = trl.GRPOConfig(
            **fields, num_generations=SAMPLES, max_completion_length=NEW, temperature=1.0, top_k=0,
        )  # fmt: skip
        reward = lambda completions, **_: [0.0] * len(completions)
        return trl.GRPOTrainer(model(), reward, args=args, train_dataset=rows, processing_class=tokenizer)
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": " a", "rejected": " a a"}] * 4)
    return trl.DPOTrainer(
        model(), ref_model=model(), args=trl.DPOConfig(beta=0.1, **fields), train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip


def trl_step(folder: str, kind: str):
    import torch

    trainer = trl_trainer(folder, kind)
    model = trainer.model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": ADAMW["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = ADAMW["b1"], ADAMW["b2"]
    optimizer = torch.optim.AdamW(groups, lr=ADAMW["learning_rate"], betas=betas, eps=ADAMW["eps"], fused=True)

    def step(number: int) -> float:
        tokens = torch.from_numpy(chats_of(number, kind).astype(np.int64))
        reply = (torch.arange(LENGTH + 1) >= PROMPT).long().expand(CHATS, -1)
        rows = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        more = {"labels": tokens.masked_fill(reply == 0, -100)} if kind == "sft" else {"completion_mask": reply}
        loss = trainer.compute_loss(model, rows | more)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() if kind == "sft" else trainer._metrics["train"]["logps/chosen"][-1]

    return step


def trl_rollout(folder: str):
    trainer = trl_trainer(folder, "rollout")
    trainer.model.train()

    def step(number: int) -> int:
        prompts = [ids for ids in chats_of(number, "rollout")[:, :PROMPT].tolist() for _ in range(SAMPLES)]
        replies, _ = trainer._generate_single_turn(prompts, None, {}, SAMPLES)
        return sum(map(len, replies))

    return step


def work(folder: str, kind: str, side: str):
    if kind == "rollout":
        return fmjax_rollout(folder) if side == "fmjax" else trl_rollout(folder)
    return fmjax_step(folder, kind) if side == "fmjax" else trl_step(folder, kind)


def main(repeats: int = 5) -> None:
    if sys.argv[1:2] == ["--worker"]:
        return serve(lambda: work(*sys.argv[2:]))
    for kind in sys.argv[1:] or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            make_weights("smollm2-135m", pathlib.Path(folder))
            measure(__file__, folder, kind, repeats, ("fmjax", "TRL"))


if __name__ == "__main__":
    main()
