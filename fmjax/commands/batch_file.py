"""Prompts from a JSONL file, continuations into another, going on where an earlier run stopped.

A line of the output is written whole as soon as its continuation has ended, so lines come in the order in which they
end; `index` says which prompt a line belongs to. Beside OUTPUT, `OUTPUT.settings.json` records what the lines were made
with: another run adds to them only with the same.

The numbers of a batched matrix product depend on its shape in their last bits, which can change what is drawn, in
bfloat16 and float16 often. So that an interrupted run ends with the lines of one that was not, prompts are continued in
groups that are the same in every run; a run that goes on computes a group with a missing line again, and writes what is
missing.
"""

import contextlib
import dataclasses
import datetime
import inspect
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from tqdm import tqdm

from fmjax import file_lock
from fmjax.commands.prompt_file import PromptFile
from fmjax.errors import DataError, InputError
from fmjax.inference.beam import beam_search, check_options, check_width
from fmjax.inference.checks import check_whole
from fmjax.inference.continuations import Continuation, Options
from fmjax.inference.engine_requests import number_copies
from fmjax.registry import nearest
from fmjax.small_files import write_whole

BEAM_OPTIONS = ("num_beams", "max_new_tokens", "length_penalty", "normalization", "cache")

OWN = ("num_samples", "copies", "batch_size", "cache_length", "progress")
"""Options of drawing that a run sets by itself."""

GROUP = 16
"""Continuations a row of the batch that a group has: at its end rows idle, and its beginning is what is done again."""

LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""Some readers end lines at these too; in JSON they stand in strings alone, where they can be escaped."""


def check_output(output: pathlib.Path, prompts: pathlib.Path) -> None:
    """Raises InputError where no output can be written, or it is not one that a run of ours began."""
    if not output.parent.is_dir():
        raise InputError(f"--output={output}: there is no folder {output.parent}")
    if output.is_dir():
        raise InputError(f"--output={output} is a folder; give a file")
    if output.exists() and output.samefile(prompts):
        raise InputError(f"--output={output} is the file with the prompts")
    if output.exists() and output.stat().st_size and not settings_path(output).exists():
        raise InputError(
            f"{output} is there already, without {settings_path(output).name}: no run of this command began it; choose "
            "another output"
        )


def settings_path(output: pathlib.Path) -> pathlib.Path:
    """Where the settings of an output are recorded."""
    return output.with_name(f"{output.name}.settings.json")


def complete_file(
    model, prompts: PromptFile, output: str | pathlib.Path, *, num_samples: int = 1, use_beams: bool = False,
    special: bool = False, template: Mapping[str, Any] | None = None, with_tokens: bool = False,
    with_logprobs: bool = False, batch_size: int = 16, progress: bool = False, **options,
) -> int:  # fmt: skip
    """Writes continuations of prompts as JSONL: `index` of the prompt, `sample` (where there are several), the fields
    of its line but the prompt itself, `text`, `num_tokens`, `finish`, and `score` of a beam search.

    An output with lines of the same settings is completed; what is missing in it comes out as it would have then.

    Args:
      model: a `fmjax.load.Model`.
      output: the file.
      num_samples: lines for each prompt; a beam search gives one, its best.
      use_beams: search with `Model.beam_search` in place of drawing.
      special, template: see `PromptFile.encode`.
      with_tokens, with_logprobs: whether lines have `tokens` and `logprobs`, a list each.
      batch_size: rows generated at once.
      progress: show a progress bar.
      options: how continuations are found, as in `Model.generate` or `Model.beam_search`.

    Returns: how many lines were added.
    Raises: InputError, before anything is computed or written, for a prompt that cannot be continued, a bad value, or
      an output that is there with other settings, and for an option that has no effect with `use_beams`.
    """
    output = pathlib.Path(output).expanduser()
    check_output(output, prompts.path)
    template = dict(template or {})
    settings = _settings(
        model, prompts, num_samples=num_samples, special=special, template=template, with_tokens=with_tokens,
        with_logprobs=with_logprobs, batch_size=batch_size,
    )  # fmt: skip
    settings |= _complete_options(model, options, use_beams, num_samples, batch_size, with_logprobs)
    settings = json.loads(json.dumps(settings, default=str))  # as it comes back from the file
    recorded = _read_settings(output, settings)
    # Templates may write the day: a run that goes on tomorrow has the same prompts.
    started = recorded["started"] if recorded else datetime.datetime.now().isoformat(timespec="seconds")
    template["now"] = datetime.datetime.fromisoformat(started)

    tokens = prompts.encode(model, special=special, template=template)
    units = [(index, sample) for index in range(len(tokens)) for sample in range(num_samples)]
    done, size = _read_output(output, units) if recorded else (set(), 0)
    seen = output.stat().st_size if output.exists() else 0
    missing = {number for number, unit in enumerate(units) if unit not in done}
    size_of_group = max(1, batch_size // settings["num_beams"]) if use_beams else GROUP * batch_size
    find = _searched if use_beams else _drawn
    found = find(model, [tokens[index] for index, _ in units], missing, size_of_group, batch_size, options)

    if not recorded:
        write_whole(settings_path(output), json.dumps({"started": started, **settings}, indent=2) + "\n")
    bar = tqdm(total=len(units), initial=len(done), desc="generating", disable=not progress, dynamic_ncols=True)
    total = 0
    with _held(output, seen, size) as file, bar:
        for number, whole in found:
            total += len(whole.tokens)
            if number not in missing:
                continue
            index, sample = units[number]
            place = {"index": index, **({"sample": sample} if num_samples > 1 else {}), **prompts.fields[index]}
            file.write(_line(place | _fields(whole, use_beams, with_tokens, with_logprobs)))
            file.flush()
            bar.update()
            if bar.format_dict["elapsed"]:
                bar.set_postfix_str(f"{total / bar.format_dict['elapsed']:,.0f} tokens/s", refresh=False)
    return len(missing)


def _settings(model, prompts: PromptFile, **options) -> dict[str, Any]:
    """What the lines of an output depend on, `options` among it: all of equal settings are alike."""
    return {
        "model": str(pathlib.Path(model.source).resolve()), "step": model.step,
        "dtype": str(getattr(model.module, "dtype", None)), "tokenizer": getattr(model.tokenizer, "fingerprint", None),
        "prompts_digest": prompts.digest, "num_prompts": len(prompts.prompts), **options,
        "mesh": None if model.placement is None else dict(model.placement.mesh.shape),
    }  # fmt: skip


@contextlib.contextmanager
def _held(output: pathlib.Path, seen: int, size: int) -> Iterator[BinaryIO]:
    """The output, open to be added to by this process alone, cut off after its whole lines.

    Args:
      seen: bytes that it had when it was read.
      size: bytes of its whole lines.

    Raises InputError where another process has it, or has written to it since it was read.
    """
    with output.open("ab") as file:
        if not file_lock.take(file, output):
            raise InputError(f"another process is writing to {output}; wait for it, or choose another output")
        if file.tell() != seen:
            raise InputError(f"another process has written to {output}; run this again to complete it")
        file.truncate(size)
        yield file


def _fields(whole: Continuation, use_beams: bool, with_tokens: bool, with_logprobs: bool) -> dict[str, Any]:
    """What a line says of a continuation."""
    fields = {"text": whole.text, "num_tokens": len(whole.tokens), "finish": whole.finish}
    fields |= {"score": whole.score} if use_beams else {}
    fields |= {"tokens": whole.tokens} if with_tokens else {}
    return fields | ({"logprobs": whole.logprobs} if with_logprobs else {})


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).translate(LINE_ENDS).encode() + b"\n"


def _complete_options(
    model, options: Mapping[str, Any], use_beams: bool, num_samples: int, batch_size: int, with_logprobs: bool
) -> dict[str, Any]:
    """The options that say what comes out, with defaults for those that are not given.

    Raises InputError for a bad value, and for an option without effect.
    """
    check_whole(1, num_samples=num_samples, batch_size=batch_size)
    if not use_beams:
        _check_names(options, [field.name for field in dataclasses.fields(Options) if field.name not in OWN], "drawing")
        given = Options(**options)
        draft = {} if given.draft is None else {"draft": str(given.draft), "draft_tokens": given.draft_tokens}
        values = dataclasses.asdict(dataclasses.replace(given, draft=None, draft_tokens=None))
        left_out = (*OWN, "steps", "draft", "draft_tokens")
        return {name: value for name, value in values.items() if name not in left_out} | draft
    if num_samples != 1:
        raise InputError(
            f"num_samples={num_samples} has no meaning with beam search, which draws nothing; leave it out"
        )
    if with_logprobs:
        raise InputError("with_logprobs has no meaning with beam search, whose lines have a score; leave it out")
    if options.get("num_results", 1) != 1:
        raise InputError(
            f"num_results={options['num_results']} is not possible here: a line is written for the best beam alone; "
            "use Model.beam_search"
        )
    _check_names(options, (*BEAM_OPTIONS, "num_results", "stop_ids"), "beam search")
    given = {name: options[name] for name in BEAM_OPTIONS if name in options}
    check_options(batch_size=batch_size, **given)
    stop_ids = Options(stop_ids=options.get("stop_ids", ())).stop_ids
    parameters = inspect.signature(beam_search).parameters
    complete = {name: options.get(name, parameters[name].default) for name in BEAM_OPTIONS}
    check_width(model.engine, complete["num_beams"])
    return complete | ({"stop_ids": sorted(stop_ids)} if stop_ids else {})


def _check_names(options: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in options:
        if name not in known:
            raise InputError(
                f"{name} is no option of {what} into a file{nearest(name, known)} Known: {', '.join(known)}"
            )


def _drawn(
    model, prompts, missing: set[int], size: int, batch_size: int, options
) -> Iterator[tuple[int, Continuation]]:
    """(number, continuation) of prompts, in groups of `size`, as far as any is missing, until none is any more."""
    copies = number_copies(prompts)
    for start in range(0, len(prompts), size):
        group = slice(start, start + size)
        left = missing & set(range(start, start + size))
        if not left:
            continue
        for piece in model.pieces(prompts[group], copies=copies[group], batch_size=batch_size, **options):
            if piece.whole is not None:
                yield start + piece.index, piece.whole
                left.discard(start + piece.index)
                if not left:
                    break


def _searched(
    model, prompts, missing: set[int], size: int, batch_size: int, options
) -> Iterator[tuple[int, Continuation]]:
    """As `_drawn`, by beam search."""
    for start in range(0, len(prompts), size):
        if missing & set(range(start, start + size)):
            found = model.beam_search(prompts[start : start + size], batch_size=batch_size, **options)
            yield from ((start + place, beams[0]) for place, beams in enumerate(found))


def _read_settings(output: pathlib.Path, settings: Mapping[str, Any]) -> dict | None:
    """What is recorded of a run that began the output; None where there is none, or it wrote no line.

    Raises InputError where the settings are others.
    """
    path = settings_path(output)
    if not path.exists() or not output.exists() or not output.stat().st_size:
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        datetime.datetime.fromisoformat(recorded["started"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another output") from None
    names = [name for name in {**recorded, **settings} if name != "started"]
    rows = [(name, recorded.get(name), settings.get(name)) for name in names]
    listed = [f"  {name}: {there!r} there, {here!r} in this call" for name, there, here in rows if there != here]
    if listed:
        raise InputError(
            f"{output} was begun with other settings:\n" + "\n".join(listed) + "\nGive the same to complete it, or "
            "another --output."
        )
    return recorded


def _read_output(output: pathlib.Path, units: Sequence[tuple[int, int]]) -> tuple[set[tuple[int, int]], int]:
    """The (index, sample) of whole lines, and the bytes that they take: a last line that was cut short is not counted.

    Raises DataError for a line that is not ours.
    """
    known, done, size = set(units), set(), 0
    lines = output.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            unit = record["index"], record.get("sample", 0)
            if unit not in known:
                raise ValueError(f"prompt {unit[0]} does not exist")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{output}, line {number} is no line of this output ({error}); take it out, or choose another output"
            ) from None
        done.add(unit)
        size += len(line) + 1
    return done, size
