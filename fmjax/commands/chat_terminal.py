"""A conversation in a terminal, or with lines from a pipe: commands, streamed replies, Ctrl-C.

Replies go to stdout, all else to stderr.
"""

import contextlib
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from fmjax.commands.chat_session import ChatSession
from fmjax.errors import InputError
from fmjax.registry import nearest

HELP = """\
/reset          forget all but the system prompt
/system TEXT    set the system prompt; without TEXT, show it
/undo           take back your last message and its reply
/retry          another reply to your last message
/save FILE      write the conversation as JSON
/load FILE      go on with a saved one
/help           this list
/quit           end; so does Ctrl-D
Ctrl-C stops a reply. A line that ends with \\ goes on in the next one. A message that begins with / is written //."""


def converse(session: ChatSession, autosave: pathlib.Path | None = None) -> None:
    """Reads messages and commands from stdin and answers them, until /quit or the end of the input.

    Args:
      session: the conversation.
      autosave: a file that the conversation is saved to after each change.

    Raises: InputError, where stdin is no terminal, for a command or message that is refused; in a terminal the
      conversation goes on.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        _note("/help lists the commands; Ctrl-D ends")
    commands = _commands(session)
    for line in _messages(interactive):
        try:
            if line == "/quit":
                return
            if line.startswith("/") and not line.startswith("//"):
                name, _, argument = line[1:].partition(" ")
                if name not in commands:
                    known = [f"/{known}" for known in (*commands, "quit")]
                    raise InputError(f"unknown command /{name}{nearest(f'/{name}', known)} Known: {', '.join(known)}")
                commands[name](argument.strip())
            else:
                _show(session, session.say(line.removeprefix("/")))
            if autosave is not None:
                session.save(autosave)
        except InputError as error:
            if not interactive:
                raise
            _note(str(error))


def _commands(session: ChatSession) -> dict[str, Callable[[str], None]]:
    def reset(_):
        session.reset()
        _note("a new conversation" + (" with the same system prompt" if session.system else ""))

    def system(text):
        if text:
            session.set_system(text)
        _note(f"system prompt: {session.system}" if session.system else "there is no system prompt")

    def undo(_):
        _note(f"taken back: {session.undo()}")

    def retry(_):
        _show(session, session.retry())

    def save(path):
        session.save(_named(path, "save"))
        _note(f"{len(session.messages)} messages saved to {path}")

    def load(path):
        session.load(_named(path, "load"))
        _note(f"{len(session.messages)} messages")

    def show_help(_):
        print(HELP, file=sys.stderr)

    return dict(reset=reset, system=system, undo=undo, retry=retry, save=save, load=load, help=show_help)


def _named(path: str, command: str) -> str:
    if not path:
        raise InputError(f"/{command} needs a file: /{command} FILE")
    return path


def _note(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)


def _show(session: ChatSession, reply: Iterator[str]) -> None:
    """Prints a reply as it comes, until Ctrl-C."""
    left_out = session.left_out
    with _interrupts() as pressed, contextlib.closing(reply):
        try:
            for number, piece in enumerate(reply):
                if number == 0 and session.left_out > left_out:
                    _note(f"the context is full: the oldest {session.left_out} messages are left out")
                print(piece, end="", flush=True)
                if pressed.is_set():
                    break
        except KeyboardInterrupt:
            pressed.set()
    print(flush=True)
    if pressed.is_set() and not session.finish:
        _note("stopped")
    elif session.finish == "length":
        _note("cut short: --max_new_tokens is the limit of a reply")
    elif session.finish == "context":
        _note("cut short: the context is full; /reset begins anew")


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; another raises KeyboardInterrupt, should nothing look at the event."""
    pressed = threading.Event()

    def handler(signum, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _messages(interactive: bool) -> Iterator[str]:
    """What is typed, or the lines of a pipe, joined where one ends with a backslash; no empty ones."""
    if interactive:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  line editing and history in input()
    parts: list[str] = []
    while True:
        try:
            line = _line("  " if parts else "> ", interactive)
        except KeyboardInterrupt:
            if not interactive:
                raise
            parts = []
            print(file=sys.stderr)
            _note("Ctrl-D or /quit ends")
            continue
        ended = line is None
        if not ended:
            parts.append(line.removesuffix("\\"))
            if line.endswith("\\"):
                continue
        text = "\n".join(parts).strip()
        parts = []
        if text:
            yield text
        if ended:
            return


def _line(prompt: str, interactive: bool) -> str | None:
    if interactive:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None
