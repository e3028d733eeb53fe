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
        "lambada_standard": "fmjax.tasks.lambada:LambadaStandard",
        # understanding and generation of text
        "hellaswag": "fmjax.tasks.commonsense:HellaSwag",
        "piqa": "fmjax.tasks.commonsense:PIQA",
        "arc_easy": "fmjax.tasks.commonsense:ARCEasy",
        "arc_challenge": "fmjax.tasks.commonsense:ARCChallenge",
        "winogrande": "fmjax.tasks.commonsense:WinoGrande",
        "boolq": "fmjax.tasks.commonsense:BoolQ",
        "openbookqa": "fmjax.tasks.commonsense:OpenBookQA",
        "copa": "fmjax.tasks.commonsense:COPA",
        "mmlu": "fmjax.tasks.mmlu:MMLU",
        "truthfulqa_mc1": "fmjax.tasks.truthfulqa:TruthfulQAMC1",
        "truthfulqa_mc2": "fmjax.tasks.truthfulqa:TruthfulQAMC2",
        "truthfulqa_gen": "fmjax.tasks.truthfulqa:TruthfulQAGen",
        "bbh": "fmjax.tasks.bbh:BBH",
        "gsm8k": "fmjax.tasks.gsm8k:GSM8K",
        "squad": "fmjax.tasks.squad:Squad",
        "xquad": "fmjax.tasks.squad:XQuAD",
        "dialogsum": "fmjax.tasks.dialogsum:DialogSum",
        "multi30k": "fmjax.tasks.multi30k:Multi30k",
    },
)
