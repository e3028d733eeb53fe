"""Evaluation tasks, one file a group: `protocol` says what a task is, `runner` runs it."""

from fmjax.registry import Registry

TASKS = Registry(
    "task",
    {
        "heldout": "fmjax.tasks.perplexity:HeldOut",
        "text": "fmjax.tasks.perplexity:TextFile",
        "wikitext": "fmjax.tasks.perplexity:WikiText",
        "wikitext_tokenized": "fmjax.tasks.perplexity:WikiTextTokenized",
        "lambada": "fmjax.tasks.lambada:Lambada",
        "lambada_openai": "fmjax.tasks.lambada:LambadaOpenAI",
        "lambada_standard": "fmjax.tasks.lambada:LambadaStandard",
        # Understanding and generation of text.
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
        # Bias and harm.
        "crows_pairs_english": "fmjax.tasks.crows_pairs:CrowsPairsEnglish",
        "crows_pairs_masked": "fmjax.tasks.crows_pairs:CrowsPairsMasked",
        "stereoset": "fmjax.tasks.bias:StereoSet",
        "winobias": "fmjax.tasks.bias:WinoBias",
        "bbq": "fmjax.tasks.bbq:BBQ",
        "advbench": "fmjax.tasks.harm:AdvBench",
        "max_toxicity": "fmjax.tasks.harm:MaxToxicity",
        "max_toxicity_prompts": "fmjax.tasks.harm:MaxToxicityPrompts",
        # Classification, extraction and retrieval: prompted, probed, fine-tuned.
        "sst2": "fmjax.tasks.classification:SST2",
        "sst2_probe": "fmjax.tasks.classification:SST2Probe",
        "sst2_finetune": "fmjax.tasks.classification:SST2FineTune",
        "ag_news": "fmjax.tasks.classification:AGNews",
        "ag_news_probe": "fmjax.tasks.classification:AGNewsProbe",
        "ag_news_finetune": "fmjax.tasks.classification:AGNewsFineTune",
        "ag_news_half": "fmjax.tasks.classification:AGNewsHalf",
        "ag_news_half_probe": "fmjax.tasks.classification:AGNewsHalfProbe",
        "ag_news_half_finetune": "fmjax.tasks.classification:AGNewsHalfFineTune",
        "wnut17": "fmjax.tasks.entities:WNUT17",
        "wnut17_probe": "fmjax.tasks.entities:WNUT17Probe",
        "wnut17_finetune": "fmjax.tasks.entities:WNUT17FineTune",
        "multi30k_retrieval": "fmjax.tasks.retrieval:Multi30kRetrieval",
        # In-context learning.
        "icl_mapping": "fmjax.tasks.in_context:Mapping",
        "icl_linear": "fmjax.tasks.in_context:Linear",
        # Control.
        "grid": "fmjax.tasks.control:GridControl",
        "cartpole": "fmjax.tasks.control:CartPoleControl",
        # Code.
        "humaneval": "fmjax.tasks.code:HumanEval",
        "mbpp": "fmjax.tasks.code:MBPP",
        "codexglue_cloze_maxmin": "fmjax.tasks.code:ClozeMaxMin",
        "codexglue_cloze_maxmin_visible": "fmjax.tasks.code:VisibleMaxMin",
    },
)
