"""--prompts=FILE.jsonl --output=FOLDER: a value for each prompt in a file of its own, going on where a run stopped.

A value is written whole, as PROMPT_SAMPLE.png, as soon as it is made. `settings.json` in the folder records what the
values were made with, models and images by their content: another run adds to them only with the same. A value depends
on its prompt, its copy and the seed alone, so that one made later comes out as it would have at first, up to rounding.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from fmjax import file_lock
from fmjax.code_digest import describe
from fmjax.commands.prompt_file import PromptFile
from fmjax.data.codecs.base import fingerprint
from fmjax.errors import InputError
from fmjax.inference.fingerprint import content_fingerprint
from fmjax.inference.values import is_file
from fmjax.load import content_of
from fmjax.small_files import write_whole

SETTINGS = "settings.json"
FILES = ("init_image", "mask")
"""Options that may be files of images."""
PATHS = "paths"


def check_output(output: pathlib.Path) -> None:
    """Raises InputError for a folder that cannot be written, or is not one that a run of ours began."""
    if output.suffix:
        raise InputError(f"--output={str(output)!r} is a file; with --prompts a folder is written: give one")
    if not output.parent.is_dir():
        raise InputError(f"--output={str(output)!r}: the folder {str(output.parent)!r} does not exist")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={str(output)!r} is a file; with --prompts a folder is written: give one")
    if output.is_dir() and any(output.iterdir()) and not (output / SETTINGS).exists():
        raise InputError(
            f"--output={str(output)!r} has files, and no {SETTINGS}: no run of this command began it; choose another"
        )


def read_prompts(path: str) -> PromptFile:
    """The prompts of a file, texts all of them. Raises DataError for what cannot be read, InputError for chats."""
    prompts = PromptFile(path)
    for line, prompt in zip(prompts.lines, prompts.prompts):
        if not isinstance(prompt, str):
            raise InputError(f"{prompts.path}, line {line}: 'messages' are for models that chat; give a 'prompt'")
    return prompts


def complete_folder(model, prompts: PromptFile, output: pathlib.Path, generator, options, write, progress=False) -> int:
    """Writes what is missing in `output`.

    Args:
      model: a `fmjax.load.Model`.
      generator: class whose `run` takes `only`.
      options: its Options.
      write: write(value, path, facts): one value, and what to say with it.
      progress: show a progress bar.

    Returns: how many values were added.
    Raises InputError, before anything is written, for a folder that is there with other settings, and as `run` does.
    """
    settings = json.loads(json.dumps(_settings(model, prompts, generator, options), default=str))
    recorded = _read_settings(output / SETTINGS, settings)
    copies, suffix = options.num_samples, model.codec.suffix
    digits = len(str(len(prompts.prompts) - 1))
    units = itertools.product(range(len(prompts.prompts)), range(copies))
    paths = [output / f"{prompt:0{digits}}_{copy}{suffix}" for prompt, copy in units]
    missing = {index for index, path in enumerate(paths) if not path.exists()}
    made = generator(model).run(prompts.prompts, options, only=missing)
    first = next(made, None)  # what cannot be made is refused before anything is written
    output.mkdir(exist_ok=True)
    with _held(output), tqdm(total=len(paths), initial=len(paths) - len(missing), disable=not progress) as bar:
        if recorded is None:
            write_whole(output / SETTINGS, json.dumps(settings, indent=2) + "\n")
        while first is not None:
            index, value = first
            facts = {"index": index // copies, "sample": index % copies, "prompt": prompts.prompts[index // copies]}
            write(value, paths[index], facts)
            bar.update()
            first = next(made, None)
    return len(missing)


@contextlib.contextmanager
def _held(output: pathlib.Path):
    """The folder, of this process alone. Raises InputError where another one writes to it."""
    with (output / f".{SETTINGS}.lock").open("ab") as file:
        if not file_lock.take(file, output):
            raise InputError(f"another process is writing to {output}; wait for it, or choose another output")
        yield


def _settings(model, prompts: PromptFile, generator, options) -> dict[str, Any]:
    """What the values depend on, but for their place in a batch; of models and images by their content, wherever they
    lie. Under `PATHS`, where models lay, on which no value depends."""
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if name != "batch_size"}
    for name in FILES:
        if isinstance(chosen.get(name), str | pathlib.Path):
            chosen[name] = _file_digest(name, pathlib.Path(chosen[name]).expanduser())
    stages = generator(model).stages(options) if hasattr(generator, "stages") else {}
    paths = {"model": f"{pathlib.Path(model.source).resolve()} at step {model.step}"}
    paths |= {name: str(chosen[name]) for name in stages}
    return {
        PATHS: paths, "content": _content(model), "dtype": str(getattr(model.module, "dtype", None)),
        "prompts_digest": prompts.digest, "num_prompts": len(prompts.prompts), **_prompt_files(prompts), **chosen,
        **{name: _content(stage) for name, stage in stages.items()},
    }  # fmt: skip


def _content(model) -> str:
    """32 hexadecimal digits of a model's content: its module and arrays, its objective's fields, its tokenizer and
    codecs, and the content of the models that its objective opens."""
    objective = model.objective
    opened = [name for name in getattr(objective, "OPENED", ()) if getattr(objective, name) is not None]
    elsewhere = {*opened, *getattr(objective, "models", dict)()}
    own = {one.name for one in dataclasses.fields(objective)} - elsewhere if objective is not None else ()
    parts = [content_of(model), describe(type(objective)), describe({name: getattr(objective, name) for name in own})]
    parts.append(str(getattr(model.tokenizer, "fingerprint", None)))
    parts += [f"{modality} {fingerprint(codec)}" for modality, codec in sorted(model.codecs.items())]
    with model.inference():
        parts += [f"{name} {content_fingerprint(model.opened(name))}" for name in opened]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _prompt_files(prompts: PromptFile) -> dict[str, str]:
    """{"prompt_files": 32 hexadecimal digits of the content of the prompts that are files, in order}; {} for none."""
    digests = [_file_digest("prompt", pathlib.Path(one).expanduser()) for one in prompts.prompts if is_file(one)]
    return {"prompt_files": hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()} if digests else {}


def _file_digest(name: str, path: pathlib.Path) -> str:
    """32 hexadecimal digits of a file's content. Raises InputError, with the option's name, where it cannot be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise InputError(f"{name}: {str(path)!r} cannot be read: {error.strerror}") from None


def _read_settings(path: pathlib.Path, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is recorded; None where nothing is. Raises InputError where it differs."""
    if not path.exists():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another output") from None
    if not {PATHS, "content"} <= recorded.keys():
        raise InputError(
            f"{path.parent} was begun by an older version of fmjax, which did not record the models' content, so that "
            "what is missing cannot be told to be made alike; choose another --output"
        )
    rows = [(name, recorded.get(name), settings.get(name)) for name in {**recorded, **settings} if name != PATHS]
    listed = [f"  {name}: {there!r} there, {here!r} in this call" for name, there, here in rows if there != here]
    if listed:
        raise InputError(
            f"{path.parent} was begun with other settings:\n" + "\n".join(listed) + "\nGive the same to complete it, "
            "or another --output."
        )
    return recorded
