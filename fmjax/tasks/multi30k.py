"""Multi30k (Elliott et al. 2016, https://arxiv.org/abs/1605.00459): captions of pictures, translated."""

from fmjax.errors import DataError
from fmjax.tasks.metrics import translation
from fmjax.tasks.protocol import Generate, Task
from fmjax.tasks.reading import read_text

_LANGUAGES = {"en": "English", "de": "German", "fr": "French", "cs": "Czech"}


class Multi30k(Task):
    """Corpus BLEU and chrF2 of generated translations of the Flickr test set of 2016.

    The prompt is that of lm-evaluation-harness's translation tasks, of which this is none; examples are of the
    validation set. sacrebleu's signatures are in the results. TFDS has no Multi30k.

    Args:
      subset: both languages, such as "en-de".
    """

    name = "multi30k"
    metrics = ("bleu", "chrf")
    description = "multi30k_en-de and the other pairs with en, de, fr, cs: translated captions; by itself en-de"
    needs = "text_multi30k/test_2016_flickr.LANGUAGE.gz, examples from val.LANGUAGE.gz (no licence stated)"
    uses = ("generate",)
    subsets = tuple(f"{one}-{other}" for one in _LANGUAGES for other in _LANGUAGES if one != other)

    def __init__(self, subset: str | None = None):
        if subset is not None:
            self.name = f"multi30k_{subset}"
        self.languages = (subset or "en-de").split("-")
        self.labels = tuple(f"{_LANGUAGES[language]} phrase:" for language in self.languages)

    def check(self):
        self.details()  # asks the library

    def documents(self, context):
        return self._read(context, "test_2016_flickr")

    def examples(self, context):
        return self._read(context, "val")

    def _read(self, context, split: str) -> list[dict]:
        paths = [context.file("text_multi30k", f"{split}.{language}.gz") for language in self.languages]
        sides = [read_text(path).removesuffix("\n").split("\n") for path in paths]
        if len(sides[0]) != len(sides[1]):
            raise DataError(f"{paths[0]} has {len(sides[0])} lines and {paths[1].name} beside it {len(sides[1])}")
        return [{"source": source.strip(), "target": target.strip()} for source, target in zip(*sides)]

    def example(self, document):
        return f"{self._question(document)} {document['target']}"

    def requests(self, document):
        return [Generate(self._question(document), max_new_tokens=128, stop=("\n",))]

    def statistics(self, document, answers):
        pair = answers[0].strip(), document["target"]
        return translation.bleu_statistics(*pair) | translation.chrf_statistics(*pair)

    def reduce(self, totals):
        return {"bleu": translation.bleu(totals), "chrf": translation.chrf(totals)}

    def details(self):
        return {"bleu": translation.bleu_signature(), "chrf": translation.chrf_signature()}

    def _question(self, document) -> str:
        source, target = self.labels
        return f"{source} {document['source']}\n{target}"
