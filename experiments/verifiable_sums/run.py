"""Right answers by a verifier, by rejection sampling and by being shown, at equal compute: see README.md.

    python experiments/verifiable_sums/run.py --workdir=runs/verifiable_sums [--seconds=0]
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

QUIET = {"train__eval_every": -1, "train__sample_every": -1}
COPIES, NEW = 8, 16


def finetuned(source: pathlib.Path, base: pathlib.Path, workdir: pathlib.Path, seconds: float) -> int:
    """Supervised fine-tuning of `base` on chats for so many seconds; its steps."""
    rows = runs.train(
        "sft_tiny.py", workdir, data__source=source.absolute(), train__init_from=base.absolute(), train__steps=20_000,
        train__max_minutes=seconds / 60, train__log_every=10, optimizer__learning_rate=5e-4, **QUIET,
    )  # fmt: skip
    return rows[-1]["step"]


def shown(file: pathlib.Path) -> None:
    """GRPO's questions with right replies."""
    from fmjax.data.chats import arithmetic

    with file.open("w") as lines:
        for record in arithmetic.digit_questions():
            lines.write(json.dumps({"prompt": record["prompt"], "completion": record["completion"]}) + "\n")


def sampled(base: pathlib.Path, file: pathlib.Path, limit: int) -> float:
    """Writes which of the base's replies a verifier finds right; the seconds that took."""
    begin = time.time()
    command = [
        "fmjax.commands.best_of", f"--model={base}", "--source=fmjax.data.chats.arithmetic:digit_questions",
        f"--output={file}", f"--num_samples={COPIES}", f"--keep={COPIES}", "--least=1", f"--limit={limit}",
        f"--max_new_tokens={NEW}", "--batch_size=256", '--rewards={"right": {"verifier": "maths"}}',
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", *command], cwd=runs.ROOT, check=True)
    return time.time() - begin


def judged(workdir: pathlib.Path) -> dict[str, float]:
    """Shares of replies that are right: likeliest ones and drawn ones to the hundred questions, and likeliest ones to
    sums up to 20, of which no way here trains anything."""
    import fmjax
    from fmjax.data.chats import arithmetic
    from fmjax.rewards.maths import verify

    model = fmjax.load(workdir)

    def share(records, copies=1, **options) -> float:
        chats = [model.encode_chat([{"role": "user", "content": record["prompt"]}]) for record in records]
        replies = model.generate(chats, max_new_tokens=NEW, num_samples=copies, batch_size=128, **options)
        answers = [record["answer"] for record in records for _ in range(copies)]
        return sum(verify(replies, answers)) / len(replies)

    few = list({record["prompt"]: record for record in arithmetic.digit_questions()}.values())
    larger = [record for record in arithmetic.questions(400) if record["prompt"] not in {r["prompt"] for r in few}]
    return {
        "questions": len(few),
        "greedy": share(few, temperature=0.0),
        "drawn": share(few, COPIES, temperature=1.0, seed=1),
        "other": share(larger, temperature=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/verifiable_sums"))
    parser.add_argument("--seconds", type=float, default=0.0, help="of each way; 0: as many as GRPO's 80 steps take")
    parser.add_argument("--limit", type=int, default=400, help="questions that are answered for rejection sampling")
    flags = parser.parse_args()
    folder = flags.workdir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    runs.train("sft_tiny.py", base)

    begin = time.time()
    rows = runs.train(f"grpo_tiny.py:{base}", folder / "grpo", **QUIET)
    seconds = flags.seconds or time.time() - begin
    shown(folder / "shown.jsonl")
    spent = sampled(base, folder / "right.jsonl", flags.limit)
    steps = {
        "grpo": rows[-1]["step"],
        "rejection": finetuned(folder / "right.jsonl", base, folder / "rejection", seconds - spent),
        "shown": finetuned(folder / "shown.jsonl", base, folder / "shown", seconds),
    }
    results = {
        "seconds": seconds,
        "seconds_of_drawing": spent,
        "kept": len((folder / "right.jsonl").read_text().splitlines()),
        "steps": steps,
        "right": {name: judged(folder / name) for name in ("base", *steps)},
        "drawn_by_step": runs.curve(rows, "train/drawn_reward"),
    }
    runs.save(HERE, results)
    print(json.dumps(results, indent=2))
    runs.plot(HERE / "grpo.png", {"GRPO": runs.curve(rows, "train/drawn_reward")}, "right, of drawn replies",
              {name: found["drawn"] for name, found in results["right"].items() if name != "grpo"})  # fmt: skip


if __name__ == "__main__":
    main()
