"""Generate: `python -m fmjax.generate --model=DIR_OR_HUB_ID` and one of

--prompt=TEXT                               print the prompt and its continuation, as the tokens come
--chat                                      a conversation, by the model's own chat template
--prompts=FILE.jsonl --output=FILE.jsonl    a file of prompts; a second call goes on where a first one stopped
--output=FILE.png                           images and other values, of a model that makes them (`commands/values.py`)
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

from fmjax.commands import cli, constraint_flags, draft_flags, launch, media
from fmjax.errors import DataError, InputError

DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "cache")
HELD = (*constraint_flags.NAMES, *draft_flags.NAMES)
BEAMS = ("num_beams", "length_penalty")
READS = {
    "prompt": ("max_new_tokens", "num_samples", "special", "vote", *media.MODALITIES, *DRAWING, *HELD, *BEAMS),
    "prompt_file": ("max_new_tokens", "num_samples", "special", "vote", *media.MODALITIES, *DRAWING, *HELD, *BEAMS),
    "chat": ("max_new_tokens", "system", "chat_file", "template", *DRAWING, *HELD),
    "prompts": (
        "output", "max_new_tokens", "num_samples", "special", "template", "batch_size", "with_tokens", "with_logprobs",
        *DRAWING, *HELD, *BEAMS,
    ),
}  # fmt: skip
"""What to do: the flags that it reads, besides those of the model."""

SEPARATOR = "-" * 40
"""A line between several samples."""


def parse(argv: list[str]):
    """The flags that are given, with `mode`, one of READS. InputError for ones that do not go together."""
    flags = _parser().parse_args(argv)
    modes = [mode for mode in READS if mode in flags]
    if media.given(flags) and not modes:  # a model that reads media may need no text
        flags.prompt, modes = "", ["prompt"]
    if len(modes) != 1:
        given = f"got {' and '.join(f'--{mode}' for mode in modes)}" if modes else "got none of them"
        raise InputError(f"give exactly one of --prompt, --prompt_file, --chat and --prompts; {given}")
    flags.mode = modes[0]
    known = {"model", "adapter", "dtype", "mesh", "quantized", "mode", flags.mode, *READS[flags.mode], *launch.NAMES}
    unread = [name for name in vars(flags) if name not in known]
    if unread:
        raise InputError(f"--{unread[0]} has no meaning with --{flags.mode}; leave it out")
    if flags.mode == "prompts" and "output" not in flags:
        raise InputError("--prompts needs an --output=FILE.jsonl")
    if "length_penalty" in flags and "num_beams" not in flags:
        raise InputError("--length_penalty belongs to beam search; give --num_beams too")
    if "vote" in flags and getattr(flags, "num_samples", 1) < 2:
        raise InputError("--vote takes the answer of most of several continuations; give --num_samples=10, say")
    draft_flags.check(flags)
    random = [name for name in (*DRAWING, "num_samples", "with_logprobs") if name in flags and name != "cache"]
    if "num_beams" in flags and random:
        raise InputError(f"--{random[0]} has no meaning with --num_beams: beam search draws nothing; leave it out")
    constraint_flags.check(flags)
    return flags


def _parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser(
        "python -m fmjax.generate",
        "Continue a text, hold a conversation, or complete a file of prompts.",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.HelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="workdir of a run, one of its checkpoints, a Hugging Face folder, or a hub id")
    add("--adapter", help="a low-rank adapter of the model: a run that trained it, or a folder that PEFT wrote")
    add("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    add("--mesh", type=cli.mesh, help="split the model over devices, such as fsdp:2,tensor:2 (default: one device)")
    add("--quantized", action="store_true", help="weights that are published in few bits (GGUF) stay so")

    add(
        "--prompt",
        help="text to continue, in which names of control tokens are text (see --special); an empty one starts from "
        "BOS, or EOS. A translation model is given the source",
    )
    add("--prompt_file", help="a file with it; - is stdin. One newline at its end is not part of it")
    add("--chat", action="store_true", help="a conversation; /help there lists its commands")
    add("--prompts", help='JSONL, on each line {"prompt": TEXT}, {"messages": [...]} or a JSON string')
    add("--output", help="with --prompts: JSONL to write or to complete")

    media.add_flags(parser)

    _add_drawing(parser)
    constraint_flags.add_flags(parser)
    draft_flags.add_flags(parser)
    add(
        "--special",
        action="store_true",
        help="names of control tokens in prompts, such as <|im_start|>, stand for them; without it they are text",
    )

    add("--system", help="with --chat: the system prompt")
    add("--chat_file", help="with --chat: go on with the conversation in this file, if it is there, and keep it there")
    add(
        "--template",
        action="append",
        type=_template_variable,
        help="NAME=JSON, a variable of the chat template, such as enable_thinking=false; repeatable",
    )
    add("--batch_size", type=cli.number(int, low=1), help="with --prompts: prompts continued at once (default: 16)")
    add("--with_tokens", action="store_true", help="with --prompts: write the drawn tokens' ids")
    add("--with_logprobs", action="store_true", help="with --prompts: write their log-probabilities")
    launch.add_flags(parser)
    return parser


def _add_drawing(parser) -> None:
    """Flags of how continuations are found: drawing, and beam search."""
    add, number = parser.add_argument, cli.number
    add("--max_new_tokens", type=number(int, low=1), help="tokens drawn at most (default: 64; in a chat 512)")
    add(
        "--temperature",
        type=number(float, low=0, high=1e6),
        help="divides the logits; 0 is greedy (default: 1; in a chat what generation_config.json says, or 0)",
    )
    add("--top_k", type=number(int, low=0), help="draw from the k likeliest; 0: all (default)")
    add(
        "--top_p",
        type=number(float, low=0, high=1, exclude_low=True),
        help="draw from the likeliest tokens that have this much probability together (default: 1)",
    )
    add(
        "--min_p",
        type=number(float, low=0, high=1),
        help="draw from tokens at least this times as likely as the likeliest (default: 0)",
    )
    add(
        "--repetition_penalty",
        type=number(float, low=0, high=1e6, exclude_low=True),
        help="above 1 makes tokens that were there before less likely (default: 1)",
    )
    add("--seed", type=number(int, low=0, high=2**32 - 1), help="of the random draws (default: 0)")
    add("--stop", action="append", help="end before this text; repeatable")
    add("--cache", help="hold keys and values of the text so far as float (default), int8 or int4, in less memory")
    add("--num_samples", type=number(int, low=1), help="continuations of each prompt (default: 1)")
    add(
        "--vote", metavar="REGEX",
        help="of --num_samples, print the first whose answer most of them have: what the last match of this is, or its "
        "first group, such as 'answer is (.*)'",
    )  # fmt: skip
    add("--num_beams", type=number(int, low=1), help="beam search with so many beams, in place of drawing")
    add("--length_penalty", type=number(float, low=0, high=1e6), help="of beam search; above 0 favours longer texts")


def _template_variable(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected NAME=JSON, such as enable_thinking=false or 'name=\"a text\"', got {text!r}"
        ) from None


def main(argv: list[str]) -> None:
    from fmjax.commands import values

    if (generator := values.generator_named_by(argv)) is not None:
        return values.main(argv, generator)
    flags = parse(argv)
    cli.log_to_stderr()
    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    modes = {"prompt": continue_prompt, "prompt_file": continue_prompt, "chat": chat, "prompts": complete_prompts}
    with launch.together(flags), _first_process_prints(flags.mode), draft_flags.told(flags):
        modes[flags.mode](flags)


@contextlib.contextmanager
def _first_process_prints(mode: str) -> Iterator[None]:
    """Of several processes that share a model. Raises InputError for what they cannot do together."""
    import jax

    if jax.process_count() > 1 and mode not in ("prompt", "prompt_file"):
        raise InputError(f"--{mode} is for one process, here are {jax.process_count()}; give --coordinator=none to it")
    if jax.process_index() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def continue_prompt(flags) -> None:
    """--prompt: prints a text and its continuation as it comes, or one continuation after the other."""
    import jax

    from fmjax.inference.voting import last_match, vote

    answer = last_match(flags.vote) if "vote" in flags else None  # what is wrong with it is said before anything slow
    prompt = flags.prompt if flags.mode == "prompt" else _read_prompt(flags.prompt_file)
    held = constraint_flags.given(flags) | draft_flags.given(flags)
    model = _load(flags)
    is_translation = model.engine.start_id is not None
    tokens = model.encode_prompts([prompt], special="special" in flags)
    shown = "" if is_translation else prompt
    options = _given(flags, "max_new_tokens", "num_samples", *DRAWING, *BEAMS) | held
    if "num_beams" in flags:
        print(shown + model.beam_search(tokens, **options)[0][0].text)
        return
    if "vote" in flags:
        texts = model.generate(tokens, **options)
        won = vote(texts, answer)
        print(shown + texts[won.index])
        print(f"{SEPARATOR}\n{won.count} of {len(texts)}: {won.answer}" if won.count else f"{SEPARATOR}\nno answers")
        return
    # Several processes compute the same programs, whoever of them has a terminal.
    steps = 1 if sys.stdout.isatty() and jax.process_count() == 1 else 8
    pieces = _in_turn(model.pieces(tokens, steps=steps, **options))
    # What cannot be generated from is refused at the first piece, before anything is printed.
    turn, piece = next(pieces, (0, ""))
    print(shown + piece, end="", flush=True)
    try:
        for index, piece in pieces:
            if index != turn:
                print(f"\n{SEPARATOR}\n{shown}", end="")
                turn = index
            print(piece, end="", flush=True)
    finally:
        print()


def _read_prompt(path: str) -> str:
    try:
        text = sys.stdin.read() if path == "-" else pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--prompt_file={path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--prompt_file={path} is not UTF-8: {error}") from None
    return text.removesuffix("\n")


def _in_turn(pieces: Iterable) -> Iterator[tuple[int, str]]:
    """(index, text) of the first continuation's pieces as they come, then of the second's, and so on."""
    turn, waiting, ended = 0, collections.defaultdict(list), set()
    for piece in pieces:
        waiting[piece.index].append(piece.text)
        if piece.whole is not None:
            ended.add(piece.index)
        while turn in waiting:
            yield from ((turn, text) for text in waiting.pop(turn))
            if turn not in ended:
                break
            turn += 1


def chat(flags) -> None:
    """--chat: a conversation in the terminal."""
    from fmjax.commands.chat_session import ChatSession, read_messages
    from fmjax.commands.chat_terminal import converse
    from fmjax.inference.chat_settings import told

    file = pathlib.Path(flags.chat_file).expanduser() if "chat_file" in flags else None
    messages = read_messages(file) if file is not None and file.exists() else []
    if "system" in flags:
        if messages:
            raise InputError(f"{file} holds a conversation already; set its system prompt in it with /system TEXT")
        messages = [{"role": "system", "content": flags.system}]
    template = dict(flags.template) if "template" in flags else {}
    _check_template(flags.model, messages, template)
    held = constraint_flags.given(flags) | draft_flags.given(flags)
    model = _load(flags)
    session = ChatSession(model, messages, template=template, **_given(flags, "max_new_tokens", *DRAWING), **held)
    print(f"{told(session.settings)}; flags that you give count before the model's own", file=sys.stderr)
    converse(session, autosave=file)


def _check_template(path: str, messages: list[dict], template: dict) -> None:
    """Raises InputError for a model that no chat is possible with, before its weights are read."""
    from fmjax import hub
    from fmjax.data.tokenizers.chat import render_chat
    from fmjax.interop import loading

    folder, _ = hub.checkpoint_step(loading.find_folder(path))
    tokenizer = loading.find_tokenizer(folder) if folder.is_dir() else None
    if tokenizer is not None:
        example = messages if any(message["role"] == "user" for message in messages) else None
        example = example or [*messages, {"role": "user", "content": "Hello"}]
        render_chat(tokenizer, example, add_generation_prompt=True, **template)


def complete_prompts(flags) -> None:
    """--prompts: continuations of a file of prompts."""
    from fmjax.commands import batch_file
    from fmjax.commands.prompt_file import PromptFile

    prompts, output = PromptFile(flags.prompts), pathlib.Path(flags.output).expanduser()
    batch_file.check_output(output, prompts.path)
    template = dict(flags.template) if "template" in flags else {}
    chats = [messages for messages in prompts.prompts if not isinstance(messages, str)]
    if chats:
        _check_template(flags.model, chats[0], template)
    elif template:
        raise InputError(f"--template has no meaning with {prompts.path}, which has no 'messages'; leave it out")
    held = constraint_flags.given(flags) | draft_flags.given(flags)
    model = _load(flags)
    names = ("max_new_tokens", "num_samples", "special", "batch_size", "with_tokens", "with_logprobs", *DRAWING, *BEAMS)
    options = _given(flags, *names) | held
    try:
        added = batch_file.complete_file(
            model, prompts, output, template=template, use_beams="num_beams" in flags, progress=True, **options
        )
    except KeyboardInterrupt:
        print(f"\nstopped; the same command completes {output}", file=sys.stderr)
        raise
    print(f"{output} is complete: {added} lines added" if added else f"{output} was complete already")


def _given(flags, *names: str) -> dict:
    return {name: getattr(flags, name) for name in names if name in flags}


def _load(flags):
    """The model, its weights once in memory. InputError for one that cannot generate."""
    from fmjax.load import load

    mesh = flags.mesh if "mesh" in flags else None
    adapters = getattr(flags, "adapter", None)
    progress = sys.stderr.isatty()
    options = dict(mesh=mesh, progress=progress, unrolled=True, adapters=adapters, quantized="quantized" in flags)
    model = load(flags.model, dtype=flags.dtype, **options)
    model.can("generate")
    media.prompts(flags, model, [], [])  # refuses files: texts are continued
    return model.unrolled(donate=True)


if __name__ == "__main__":
    cli.leave(cli.run(main))
