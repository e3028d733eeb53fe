"""Any fmjax model in lm-evaluation-harness (extra `[lm-eval]`), with all of the harness's tasks.

The command is `fmjax.commands.lm_eval`. From Python: `lm_eval.simple_evaluate(model=HarnessModel(m), tasks=[...])`;
once this module is imported also `simple_evaluate(model="fmjax", model_args={"pretrained": DIR})`. Requests are
answered as those of fmjax's own tasks are, so that a task scores the same in both. To the harness the model is one
process, however many devices it lies on.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.errors import InputError
from fmjax.tasks.protocol import Generate, Request, Rolling, Score

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:  # said when something is asked of it, so that the command gives a message and not a traceback
    LM = object

    def register_model(name):
        return lambda cls: cls


MAX_NEW_TOKENS = 256
"""Where a task does not say how long an answer may be, as in the harness's own models."""

_KEY = "fmjax_model"


@register_model("fmjax")
class HarnessModel(LM):
    """A model as the harness sees it: rank 0 of 1.

    Answers may be kept on disk (`answers`), by the content of model, tokenizer and request. The harness's own cache
    (`use_cache`) does not know which model answered; a file that holds another's answers is refused.

    Args:
      pretrained: a `fmjax.load.Model`, or what `fmjax.load` takes.
      seed: of continuations that are drawn.
      answers: folder where answers are kept as they come, and found by a later run; None keeps none.
      progress: show progress bars.
      **load: for a path: options of `fmjax.load`, `dtype` and `mesh`. The harness's own `batch_size`, `max_batch_size`
        and `device` are of no use here: fmjax batches by length and the mesh says where the model lies.

    Raises: InputError without the harness, or without a tokenizer.
    """

    def __init__(self, pretrained, *, seed: int = 0, answers=None, progress: bool = False, **load):
        need_harness()
        super().__init__()
        for name in ("batch_size", "max_batch_size", "device"):
            load.pop(name, None)
        from fmjax.load import Model
        from fmjax.load import load as load_model

        if isinstance(pretrained, Model):
            if load:
                raise InputError(f"{', '.join(load)}: options of loading, and the model is loaded already")
            model = pretrained
        else:
            model = load_model(pretrained, **load)
        if model.tokenizer is None:
            raise InputError(f"{model} has no tokenizer, and the harness's requests are texts")
        self.model, self.seed, self.progress = model, seed, progress
        self._template: str | None = None
        self.answers = None if answers is None else pathlib.Path(answers)

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found = self._answer("loglikelihood", requests, [Score(*r.args) for r in requests], disable_tqdm)
        return [(answer.loglikelihood, answer.is_greedy) for answer in found]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        found = self._answer("loglikelihood_rolling", requests, [Rolling(*r.args) for r in requests], disable_tqdm)
        return [answer.loglikelihood for answer in found]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        # Equal requests are the repeats of one prompt: each is a draw of its own.
        seen = collections.Counter()
        asked = []
        for request in requests:
            one = generate_request(*request.args)
            asked.append(dataclasses.replace(one, sample=seen[one] if one.temperature > 0 else 0))
            seen[one] += 1
        return self._answer("generate_until", requests, asked, disable_tqdm)

    def _answer(self, kind: str, instances, requests: Sequence[Request], disable_tqdm: bool) -> list:
        from fmjax.tasks.answers import answer
        from fmjax.tasks.store import AnswerStore

        label = kind if self.progress and not disable_tqdm else None
        if self.answers is None:
            return answer(requests, self.model, label, seed=self.seed)
        with AnswerStore(self.answers, self.model) as store:
            return answer(requests, self.model, label, seed=self.seed, store=store)

    @functools.cached_property
    def fingerprint(self) -> str:
        from fmjax.inference.fingerprint import model_fingerprint

        return model_fingerprint(self.model)

    def set_cache_hook(self, cache_hook) -> None:
        """Called by the harness for `use_cache`. Raises InputError where the file holds another model's answers."""
        super().set_cache_hook(cache_hook)
        known = cache_hook.dbdict
        if known is None:
            return
        mine = f"{self.fingerprint}, seed {self.seed}"
        if len(known) and known.get(_KEY) != mine:
            raise InputError(
                f"use_cache: the file holds answers of another model ({known.get(_KEY, 'which one it does not say')}); "
                f"this one is {mine}. Give another file"
            )
        known[_KEY] = mine

    @property
    def tokenizer_name(self) -> str:
        """Names tokenizer and templates by their content: the harness keeps tokenised requests under it."""
        from fmjax.data.tokenizers.base import digest

        templates = json.dumps(dict(self.model.tokenizer.chat_templates), sort_keys=True)
        return f"fmjax-{digest(self.model.tokenizer.fingerprint.encode(), templates.encode())}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template that `apply_chat_template` will use; None where no template is asked for.

        chat_template: the name of one of the tokenizer's templates, or True for its usual one.
        """
        self._template = None if chat_template is True else chat_template or None
        return self.model.tokenizer.chat_templates.get(self._template or "default") if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text. From then on names of control tokens in requests stand for these tokens."""
        from fmjax.data.tokenizers.chat import render_chat

        if not isinstance(self.model.tokenizer, ControlTokens):
            self.model = dataclasses.replace(self.model, tokenizer=ControlTokens(self.model), kept={})
        return render_chat(
            self.model.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            template=self._template,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness's results say about the model."""
        return {"model_source": self.model.source, "model_sha": self.fingerprint}


class ControlTokens:
    """A model's tokenizer for rendered chats: it recognises control tokens, and drops a BOS that would be doubled."""

    def __init__(self, model):
        self._inner, self._begins = model.tokenizer, model.add_bos
        self.fingerprint = f"{self._inner.fingerprint}, control tokens in texts"

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        tokens = self._inner.encode_special(text)
        return tokens[1:] if self._begins and tokens[:1] == [self._inner.bos_id] else tokens


def generate_request(context: str, options: Mapping[str, Any]) -> Generate:
    """The harness's request for a continuation. Raises InputError for an option that would change it and is unknown."""
    options = dict(options)
    until = options.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    lengths = [options.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
    length = next((int(one) for one in lengths if one is not None), MAX_NEW_TOKENS)
    temperature, drawn = options.pop("temperature", None), options.pop("do_sample", None)
    # As the harness's own models do, greedy unless it is asked for otherwise; a temperature of 0 is greedy too.
    temperature = float(bool(drawn) if temperature is None else temperature)
    drawn = temperature > 0 if drawn is None else drawn
    top_p = float(options.pop("top_p", None) or 1.0)
    neutral = {"num_beams": 1, "top_k": 0, "repetition_penalty": 1.0, "min_p": 0.0, "num_return_sequences": 1}
    unknown = {k: v for k, v in options.items() if v is not None and (k not in neutral or v != neutral[k])}
    if unknown:
        raise InputError(
            f"generation options {unknown}: expected until, max_gen_toks, do_sample, temperature and top_p alone; "
            "override them in the task or with gen_kwargs"
        )
    return Generate(context, length, tuple(s for s in until if s), temperature if drawn else 0.0, top_p)


def need_harness() -> None:
    """Raises InputError where lm-evaluation-harness is not installed."""
    if LM is object:
        raise InputError("lm-evaluation-harness is not installed; install it with: pip install -e '.[lm-eval]'")


def task_manager(tasks: Sequence[str], include_path: Sequence[str]):
    """The harness's tasks; its own, which take seconds to list, only where `include_path` does not have all."""
    from lm_eval.tasks import TaskManager

    paths = list(include_path)
    if paths:
        own = TaskManager(include_path=paths, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=paths or None)
