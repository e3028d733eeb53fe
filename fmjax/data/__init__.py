"""Data: a batch is a pure function of (config, seed, step)."""

from fmjax.registry import Registry

DATASETS = Registry(
    "data",
    {
        "captioned_images": "fmjax.data.captioned_images:CaptionedImages",
        "chat_prompts": "fmjax.data.chats.asked:ChatPromptData",
        "chats": "fmjax.data.chats.data:ChatData",
        "digit_captions": "fmjax.data.digit_captions:DigitCaptions",
        "digits": "fmjax.data.digits:Digits",
        "images": "fmjax.data.images:ImageData",
        "kept": "fmjax.data.kept:Kept",
        "labelled": "fmjax.data.chats.ranked:LabelledData",
        "masked_text": "fmjax.data.masked_text:MaskedTextData",
        "pairs": "fmjax.data.pairs:PairData",
        "pixels": "fmjax.data.pixels:PixelData",
        "preferences": "fmjax.data.chats.ranked:PreferenceData",
        "prompts": "fmjax.data.prompts:PromptData",
        "shapes": "fmjax.data.shapes.data:Shapes",
        "steps": "fmjax.data.chats.stepwise:StepData",
        "text": "fmjax.data.text:TextData",
        "with_pretraining": "fmjax.data.with_pretraining:WithPretraining",
    },
    contract="fmjax.data.base:DataPlugin",
)
