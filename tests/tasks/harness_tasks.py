"""Made-up documents of registered tasks, in their published form for lm-evaluation-harness and in that fmjax reads."""

import json
import pathlib
import zipfile

import numpy as np

HARNESS = {
    # Task: its file in the harness's folder of tasks, the split of the documents, that of the examples.
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", None),  # examples of the file are its other documents
    "piqa": ("piqa/piqa.yaml", "validation", "train"),
    "arc_easy": ("arc/arc_easy.yaml", "test", "train"),
    "winogrande": ("winogrande/default.yaml", "validation", "train"),
    "boolq": ("super_glue/boolq/default.yaml", "validation", "train"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test", "train"),
    "copa": ("super_glue/copa/default.yaml", "validation", "train"),
    "sst2": ("glue/sst2/default.yaml", "validation", "train"),
    "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", "test", "dev"),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "validation", None),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "validation", None),
    "lambada_openai": ("lambada/lambada_openai.yaml", "test", None),
    "lambada_standard": ("lambada/lambada_standard.yaml", "test", None),
    "wikitext": ("wikitext/wikitext.yaml", "test", None),
    "gsm8k": ("gsm8k/gsm8k.yaml", "test", "train"),
}

INCLUDE = """
include: {path}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {files}}}
fewshot_split: {examples}
fewshot_config: {{sampler: first_n}}
"""


class Documents:
    """Documents of every task, written to a folder: `FOLDER/tasks` for the harness, the rest for fmjax.

    tfds: the records of each TFDS split ("NAME:SPLIT"), for the tasks that have no file of the published form.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.rng, self.tfds = folder, np.random.default_rng(0), {}
        for name in HARNESS:
            getattr(self, f"_{name}")()

    def words(self, low: int = 1, high: int = 4) -> str:
        letters = list("abcdéfg")
        return " ".join(
            "".join(self.rng.choice(letters, self.rng.integers(2, 6))) for _ in range(self.rng.integers(low, high))
        )

    def sentence(self) -> str:
        return self.words().capitalize() + "."

    def gold(self, count: int) -> int:
        return int(self.rng.integers(count))

    def rows(self, make, count: int = 5) -> list[dict]:
        return [make() for _ in range(count)]

    def harness(self, name: str, rows: list[dict], examples: list[dict] | None = None) -> None:
        """Writes the harness's own task of this name, with these rows in place of those it would download."""
        from importlib.resources import files

        path, split, example_split = HARNESS[name]
        paths = {}
        for one, content in {split: rows, example_split or split: examples or rows}.items():
            paths[one] = str(self.write(f"harness/{name}_{one}.jsonl", content))
        path = files("lm_eval") / "tasks" / path
        text = INCLUDE.format(path=path, files=json.dumps(paths), examples=example_split or split)
        self.put(f"tasks/{name}.yaml", f"task: {name}{text}")

    def put(self, name: str, text: str) -> pathlib.Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def write(self, name: str, rows: list[dict]) -> pathlib.Path:
        return self.put(name, "".join(json.dumps(row) + "\n" for row in rows))

    def both(self, name: str, make, splits: tuple[str, str], convert) -> None:
        """Rows of documents and of examples for the harness, and what `convert` makes of them as records of TFDS."""
        documents, examples = self.rows(make), self.rows(make)
        self.harness(name, documents, examples)
        for split, rows in zip(splits, (documents, examples)):
            self.tfds[split] = [convert(row) for row in rows]

    def _hellaswag(self):
        rows = self.rows(
            lambda: {
                "activity_label": self.words(1, 3),
                "ctx_a": f"[header] {self.words()} [title] {self.sentence()}",
                "ctx_b": self.words(),
                "endings": [f" [step] {self.words()}  {self.sentence()}" for _ in range(4)],
                "label": str(self.gold(4)),
                "source_id": "wikihow~1",
            }
        )
        self.harness("hellaswag", rows)
        self.write("eval_hellaswag/hellaswag_val.jsonl", rows)

    def _piqa(self):
        def make():
            return {"goal": self.words(), "sol1": self.sentence(), "sol2": self.sentence(), "label": self.gold(2)}

        self.both("piqa", make, ("piqa:validation", "piqa:train"), dict)

    def _arc_easy(self):
        def make():
            return {
                "question": self.sentence(),
                "choices": {"text": [self.words() for _ in range(4)], "label": list("ABCD")},
                "answerKey": "ABCD"[self.gold(4)],
            }

        def convert(row):
            numbers = {"text": row["choices"]["text"], "label": [0, 1, 2, 3]}
            return row | {"choices": numbers, "answerKey": "ABCD".index(row["answerKey"])}

        self.both("arc_easy", make, ("ai2_arc/ARC-Easy:test", "ai2_arc/ARC-Easy:train"), convert)

    def _winogrande(self):
        def make():
            return {
                "sentence": f"{self.words()} _ {self.sentence()}",
                "option1": self.words(1, 2),
                "option2": self.words(1, 2),
                "answer": str(1 + self.gold(2)),
            }

        splits = "winogrande:validation", "winogrande:train_xl"
        self.both("winogrande", make, splits, lambda row: row | {"label": int(row["answer"]) - 1})

    def _boolq(self):
        def make():
            passage = f"{self.words()} -- {self.sentence()}"
            return {"question": self.words(), "passage": passage, "label": self.gold(2)}

        def convert(row):
            title, passage = row["passage"].split(" -- ")
            return {
                "title": title,
                "passage": passage,
                "question": row["question"],
                "answer": bool(row["label"]),
            }

        self.both("boolq", make, ("bool_q:validation", "bool_q:train"), convert)

    def _openbookqa(self):
        def make():
            return {
                "question_stem": self.words(),
                "choices": {"text": [self.words() for _ in range(4)], "label": list("ABCD")},
                "answerKey": "ABCD"[self.gold(4)],
            }

        def convert(row):
            options = {f"choice_{letter}": text for letter, text in zip("ABCD", row["choices"]["text"])}
            return {"question": {"stem": row["question_stem"], **options}, "answerKey": "ABCD".index(row["answerKey"])}

        self.both("openbookqa", make, ("openbookqa:test", "openbookqa:train"), convert)

    def _copa(self):
        def make():
            return {
                "premise": self.sentence(),
                "choice1": self.sentence(),
                "choice2": self.sentence(),
                "question": ("cause", "effect")[self.gold(2)],
                "label": self.gold(2),
            }

        self.both("copa", make, ("super_glue/copa:validation", "super_glue/copa:train"), dict)

    def _sst2(self):
        def make():
            return {"sentence": self.words(), "label": self.gold(2)}

        documents, examples = self.rows(make), self.rows(make)
        self.harness("sst2", documents, examples)
        for name, rows in (("dev", documents), ("train", examples)):
            lines = (f"{row['sentence']}\t{row['label']}\n" for row in rows)
            self.put(f"eval_sst2/{name}.tsv", "".join(lines))

    def _mmlu_anatomy(self):
        def make():
            choices = [self.words(1, 2) for _ in range(4)]
            return {"question": self.sentence(), "choices": choices, "answer": self.gold(4)}

        documents, examples = self.rows(make), self.rows(make)
        self.harness("mmlu_anatomy", documents, examples)
        path = self.put("eval_mmlu/mmlu_csv.zip", "")
        with zipfile.ZipFile(path, "w") as file:
            for split, rows in (("test", documents), ("dev", examples)):
                lines = [",".join([row["question"], *row["choices"], str(row["answer"])]) for row in rows]
                header = "question,choice0,choice1,choice2,choice3,answer"
                file.writestr(f"{split}/anatomy_{split}.csv", "\n".join([header, *lines]))

    def _truthfulqa_mc1(self):
        def make():
            def targets(*labels):
                return {"choices": [self.sentence() for _ in labels], "labels": list(labels)}

            return {"question": self.sentence(), "mc1_targets": targets(1, 0, 0), "mc2_targets": targets(1, 1, 0)}

        self.truths = self.rows(make)
        self.harness("truthfulqa_mc1", self.truths)
        kinds = ("mc1_targets", "mc2_targets")
        rows = [
            row | {kind: dict(zip(row[kind]["choices"], row[kind]["labels"])) for kind in kinds} for row in self.truths
        ]
        self.put("eval_truthfulqa/mc_task.json", json.dumps(rows))

    def _truthfulqa_mc2(self):
        self.harness("truthfulqa_mc2", self.truths)

    def _lambada_openai(self):
        rows = self.rows(lambda: {"text": self.words(4, 9)})
        self.harness("lambada_openai", rows)
        self.write("eval_lambada/lambada_test.jsonl", rows)

    def _lambada_standard(self):
        rows = self.rows(lambda: {"text": self.words(4, 9)})
        self.harness("lambada_standard", rows)
        self.tfds["lambada:test"] = [{"passage": row["text"]} for row in rows]

    def _wikitext(self):
        def make():
            return {"page": f" = {self.words()} = \n\n {self.words()} , {self.words()} @-@ {self.words()} . \n"}

        rows = self.rows(make)
        self.harness("wikitext", rows)
        self.put("text_wikitext2/wiki.test.raw", "\n".join(row["page"] for row in rows))

    def _gsm8k(self):
        def make():
            return {"question": self.sentence(), "answer": f"{self.sentence()}\n#### {self.gold(100)}"}

        documents, examples = self.rows(make, 2), self.rows(make, 2)
        self.harness("gsm8k", documents, examples)
        self.write("eval_gsm8k/test.jsonl", documents)
        self.write("eval_gsm8k/train.jsonl", examples)
