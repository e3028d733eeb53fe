"""Classification of texts, prompted, by a linear probe, and with all weights fine-tuned: SST-2 and AG News."""

from collections.abc import Sequence

import numpy as np

from fmjax.errors import DataError
from fmjax.tasks import adaptation
from fmjax.tasks.calibration import Calibrated, softmax
from fmjax.tasks.composed import Composed
from fmjax.tasks.protocol import Apply, Prediction, Score
from fmjax.tasks.reading import convert_records, read_csv, read_text
from fmjax.tasks.trained import Trained


class Classification(Composed, Calibrated):
    """A task whose documents are {"text": ..., "label": ...}.

    `acc`: whether the likeliest class is right, the first of equally likely ones counting as the likeliest; `ece` and
    `ece_mass`: see `Calibrated`.

    The data set and how it is answered (`Prompted`, `Probed`, `FineTuned`) are separate bases; a class with both is a
    task.

    Attributes:
      classes: what a prompt's answer is, in the order of the labels.
    """

    metrics = ("acc", "ece", "ece_mass")
    classes: tuple[str, ...]

    def training(self, context):
        """Training documents."""
        raise NotImplementedError

    def logits(self, answers: list) -> Sequence[float]:
        """A logit for each class."""
        raise NotImplementedError

    def statistics(self, document, answers):
        logits = self.logits(answers)
        return {"acc": float(np.argmax(logits) == document["label"]), "confidence": float(softmax(logits).max())}

    def prediction(self, document, answers):
        found = softmax(self.logits(answers)).tolist()
        return Prediction(None, self.classes[int(np.argmax(found))], dict(zip(self.classes, found)))


class Prompted(Classification):
    """Asks for the log-likelihood of each class's name; their softmax is the confidence.

    Attributes:
      labels: what follows a text in its prompt, a line each; the class's name comes after the last.
    """

    labels: tuple[str, ...]
    how = "prompted: accuracy, calibration errors"

    def examples(self, context):
        return self.training(context)

    def prompt(self, document) -> str:
        """The document up to where the class's name comes, without a space at its end."""
        return "\n".join((document["text"], *self.labels))

    def example(self, document):
        return f"{self.prompt(document)} {self.classes[document['label']]}"

    def requests(self, document):
        return [Score(self.prompt(document), f" {name}") for name in self.classes]

    def logits(self, answers):
        return [answer.loglikelihood for answer in answers]


class Probed(Trained, Classification):
    """Answers with a linear probe of frozen embeddings (`fmjax.tasks.adaptation.probe`)."""

    suffix, how = "_probe", "by a linear probe (DATASET_probe:COUNT training texts)"
    train = staticmethod(adaptation.probe)

    def fit(self, model, documents, seed):
        texts, labels = [d["text"] for d in documents], [d["label"] for d in documents]
        return self.train(model, texts, labels, len(self.classes), seed)

    def requests(self, document):
        return [Apply("class_logits", document["text"])]

    def logits(self, answers):
        return answers[0]


class FineTuned(Probed):
    """Answers with all weights and a head trained (`fmjax.tasks.adaptation.fine_tune`)."""

    suffix, how = "_finetune", "fine-tuned (DATASET_finetune:COUNT training texts)"
    train = staticmethod(adaptation.fine_tune)


class SST2Data(Classification):
    """SST-2 (Socher et al. 2013, https://aclanthology.org/D13-1170): sentences of film reviews, positive or negative.

    The local files have the 6,920 whole sentences of the original training set, not GLUE's 67,349 phrases; their 872
    validation sentences are GLUE's, without hyphens. A header, as GLUE has one, is left out.
    """

    dataset, about = "sst2", "sentiment of a sentence"
    classes = ("negative", "positive")
    needs = "eval_sst2/dev.tsv, train.tsv (no licence stated)"

    def documents(self, context):
        return self._read(context.file("eval_sst2", "dev.tsv"))

    def training(self, context):
        return self._read(context.file("eval_sst2", "train.tsv"))

    def _read(self, path):
        found = []
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            text, tab, label = line.rstrip("\r").rpartition("\t")
            if not line.strip() or (number == 1 and (text, label) == ("sentence", "label")):
                continue
            if not tab or label not in ("0", "1"):
                raise DataError(f"{path}, line {number}: expected a sentence, a tab, and 0 or 1, got {line[:80]!r}")
            found.append({"text": text.strip(), "label": int(label)})
        return found


class SST2(SST2Data, Prompted):
    """SST-2 with lm-evaluation-harness's prompt."""

    labels = ("Question: Is this sentence positive or negative?", "Answer:")


class SST2Probe(SST2Data, Probed):
    """SST-2 by a linear probe; `sst2_probe:64` trains on 64 sentences."""


class SST2FineTune(SST2Data, FineTuned):
    """SST-2 with all weights trained."""


class AGNewsData(Classification):
    """AG News (Zhang et al. 2015, https://arxiv.org/abs/1509.01626): the topic of a news item, one of four.

    In the texts a backslash stands for a line's end and becomes a space.
    """

    dataset, about = "ag_news", "topic of a news item"
    classes = ("World", "Sports", "Business", "Sci/Tech")
    needs = "eval_ag_news/test.csv, train.csv for training, or TFDS ag_news_subset (non-commercial research)"

    def documents(self, context):
        if path := context.find("eval_ag_news", "test.csv"):
            return self._read(path)
        return self._tfds(context, "test")

    def training(self, context):
        if path := context.find("eval_ag_news", "train.csv"):
            return self._read(path)
        if context.find("eval_ag_news", "test.csv"):
            raise DataError(
                "needs eval_ag_news/train.csv beside test.csv for its training documents; put it there, or evaluate "
                f"ag_news_half{self.suffix}, which trains on one half of test.csv and tests on the other"
            )
        return self._tfds(context, "train")

    def _tfds(self, context, split):
        rows = context.tfds(f"ag_news_subset:{split}", "eval_ag_news/test.csv")
        return [self._document(row["label"], row["title"], row["description"]) for row in rows]

    def _read(self, path):
        rows = read_csv(read_text(path), path, ("class", "title", "text"), header=False)
        convert = lambda row: self._document(("1", "2", "3", "4").index(row["class"]), row["title"], row["text"])
        return convert_records(rows, convert, "a class from 1 to 4", path)

    def _document(self, label, title, text):
        return {"text": f"{title.strip()}\n{text.strip()}".replace("\\", " "), "label": label}


class AGNews(AGNewsData, Prompted):
    """AG News with a prompt in the manner of lm-evaluation-harness's SST-2, which has no AG News of its own."""

    version = "2"
    labels = ("Question: Is this article about World, Sports, Business or Sci/Tech?", "Answer:")


class AGNewsProbe(AGNewsData, Probed):
    """AG News by a linear probe."""


class AGNewsFineTune(AGNewsData, FineTuned):
    """AG News with all weights trained."""


class AGNewsHalfData(AGNewsData):
    """Where AG News's training set is missing: half of its test set, and the other half for training.

    Items are halved in the order of their digests, so that the order of the file does not matter.
    """

    dataset, about = "ag_news_half", "topic of a news item, on half of the test set"
    needs = "eval_ag_news/test.csv (non-commercial research)"

    def documents(self, context):
        rows = self._sorted(context)
        return rows[: len(rows) // 2]

    def training(self, context):
        rows = self._sorted(context)
        return rows[len(rows) // 2 :]

    def _sorted(self, context):
        return sorted(self._read(context.file("eval_ag_news", "test.csv")), key=self.key)


class AGNewsHalf(AGNewsHalfData, AGNews):
    """`ag_news` on half of its test set, with examples of the other half."""


class AGNewsHalfProbe(AGNewsHalfData, Probed):
    """AG News by a linear probe of half of its test set."""


class AGNewsHalfFineTune(AGNewsHalfData, FineTuned):
    """AG News with all weights trained on half of its test set."""
