"""The 2017 Transformer on English-German captions: `python experiments/translation/run.py --data=MULTI30K`.

Trains `configs/transformer.py:tiny`, translates the test set with greedy search and with beams, and compares BLEU
(sacrebleu) with copying the source. Draws `loss.png`, writes `results.json` and `translations.txt`.
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

SEARCHES = {"greedy": ("--temperature=0",), "4 beams": ("--num_beams=4", "--length_penalty=0.6")}


def translate(workdir: pathlib.Path, sources: list[str], name: str, flags) -> list[str]:
    """Translations in order, by the batch mode of the generate command."""
    stem = workdir / name.replace(" ", "_")
    prompts, output = stem.with_suffix(".prompts.jsonl"), stem.with_suffix(".jsonl")
    prompts.write_text("".join(json.dumps({"prompt": source}) + "\n" for source in sources))
    flags = [f"--model={workdir}", f"--prompts={prompts}", f"--output={output}", "--max_new_tokens=64", *flags]
    subprocess.run([sys.executable, "-m", "fmjax.generate", *flags], check=True, cwd=runs.ROOT)
    lines = sorted(map(json.loads, output.read_text().splitlines()), key=lambda line: line["index"])
    return [line["text"] for line in lines]


def main():
    import sacrebleu

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", required=True, type=pathlib.Path, help="folder with train, val and test files of Multi30k"
    )
    parser.add_argument("--runs", default="runs/translation", type=pathlib.Path, help="where the run is kept")
    flags = parser.parse_args()
    data, workdir = flags.data.absolute(), flags.runs.absolute() / "en_de"
    files = {
        f"data__{'eval_' * (split == 'val')}{side}_file": data / f"{split}.{language}.gz"
        for split in ("train", "val") for side, language in (("source", "en"), ("target", "de"))
    }  # fmt: skip
    metrics = runs.train("transformer.py:tiny", workdir, **files)
    sources, references = (
        gzip.open(data / f"test_2016_flickr.{language}.gz", "rt", encoding="utf-8").read().splitlines()
        for language in ("en", "de")
    )
    found = {"copying the source": sources}
    found |= {name: translate(workdir, sources, name, search) for name, search in SEARCHES.items()}
    bleu = sacrebleu.BLEU()
    results = {name: bleu.corpus_score(texts, [references]).score for name, texts in found.items()}
    results |= {"signature": str(bleu.get_signature()), "eval/loss": runs.last(metrics, "eval/loss")}
    shown = zip(sources[:20], references[:20], found["4 beams"][:20])
    (HERE / "translations.txt").write_text("\n".join(f"{s}\n  ref: {r}\n  out: {t}" for s, r, t in shown) + "\n")
    curves = {
        "training (smoothed targets)": runs.curve(metrics, "train/loss"),
        "validation": runs.curve(metrics, "eval/loss"),
    }
    runs.plot(HERE / "loss.png", curves, "loss, nats per token")
    runs.save(HERE, results)


if __name__ == "__main__":
    main()
