"""Evaluation tasks, one file a group: `protocol` says what a task is, `runner` runs it."""

from fmjax.registry import Registry

TASKS = Registry(
    "task",
    {
        "heldout": "fmjax.tasks.perplexity:HeldOut",
        "text": "fmjax.tasks.perplexity:TextFile",
        "wikitext": "fmjax.tasks.perplexity:WikiText",
        "lambada": "fmjax.tasks.lambada:Lambada",
        "lambada_openai": "fmjax.tasks.lambada:LambadaOpenAI",
        # Code.
        "humaneval": "fmjax.tasks.code:HumanEval",
        "mbpp": "fmjax.tasks.code:MBPP",
        "codexglue_cloze_maxmin": "fmjax.tasks.code:ClozeMaxMin",
        "codexglue_cloze_maxmin_visible": "fmjax.tasks.code:VisibleMaxMin",
    },
)
