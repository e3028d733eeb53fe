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
    },
)
