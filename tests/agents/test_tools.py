"""Tools by themselves: what they give, and what they refuse."""

import math
import pathlib
import re

import numpy as np
import pytest

from fmjax.agents.calculator import Calculator, evaluate, written
from fmjax.agents.choosing import Places, made
from fmjax.agents.documents import Search, passages, split
from fmjax.agents.files import Folder, file_tools
from fmjax.agents.notes import Notes, note_tools
from fmjax.agents.python_code import PythonCode
from fmjax.agents.tools import Call, ToolError, by_name, carried_out, check_arguments
from fmjax.errors import DataError, InputError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 + 4 * 2", 11), ("(3 + 4) * 2", 14), ("-7 // 2", -4), ("2 ** 100", 2**100), ("2^3", 8), ("7 % 4", 3),
        ("1 ** 5000", 1), ("2 ** 4000", 2**4000), ("10 ** 400", 10**400), ("round(2.5)", 2),
        ("round(2.567, 1)", 2.6), ("round(1234, -2)", 1200),
        ("sqrt(2)", math.sqrt(2)), ("max(1, 2.5)", 2.5), ("10 / 4", 2.5), ("6 / 3", 2.0), ("2 * pi", 2 * math.pi),
    ],
)  # fmt: skip
def test_arithmetic(expression, value):
    assert evaluate(expression) == value
    assert written(6 / 3) == "2" and written(1 / 3) == "0.333333333333"


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')", "().__class__", "9 ** 9 ** 9", "10 ** 5000", "1 / 0", "x + 1", "'a' * 9", "[1] * 2",
        "1 if 1 else 2", "lambda: 0", "(1).real", "abs(x=1)", "", "1 +", "sqrt(-1)", "(-8) ** 0.5", "1e400", "True + 1",
        "min()", "f'{1}'", "9" * 401, "(" * 300 + "1" + ")" * 300,
        "round(1, -1000000000)", "round(1.5, 10 ** 9)", "round(1, 2, 3)", "round(1, 1.5)",
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused(expression):
    with pytest.raises(ToolError):
        evaluate(expression)


def test_a_call_is_carried_out_or_the_model_is_told_why_not():
    class Broken:
        name, description, parameters = "broken", "", {"n": {"type": "integer"}}

        def call(self, arguments):
            raise KeyError("inside")

    tools = by_name([Calculator(), Broken()])
    assert carried_out(tools, Call("calculator", {"expression": "1+1"})) == ("2", True)
    for call, message in [
        (Call("calculater", {}), "did you mean 'calculator'"),
        (Call("calculator", {}), "needs the argument 'expression'"),
        (Call("calculator", {"expression": 3}), "must be of type string, got 3"),
        (Call("calculator", {"expression": "1", "x": 1}), "no argument 'x'"),
        (Call("calculator", "1+1"), "takes an object"),
        (Call("broken", {"n": True}), "must be of type integer, got True"),
        (Call("broken", {"n": 1}), "KeyError: 'inside'"),
    ]:
        result, succeeded = carried_out(tools, call)
        assert result.startswith("error: ") and message in result and not succeeded
    with pytest.raises(InputError, match="two tools are called 'calculator'"):
        by_name([Calculator(), Calculator()])
    check_arguments(Broken(), {"n": 3})


def test_nothing_leads_out_of_the_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "secret.txt"
    inside.mkdir()
    outside.write_text("secret")
    (inside / "link").symlink_to(outside)
    (inside / "up").symlink_to(tmp_path)
    tools = by_name(file_tools(inside))
    for name in ("../secret.txt", str(outside), "link", "up/secret.txt", "", ".", "a\0b", "x/../../secret.txt"):
        for tool, more in (("read_file", {}), ("write_file", {"text": "x"})):
            assert carried_out(tools, Call(tool, {"name": name, **more}))[1] is False, (tool, name)
    assert outside.read_text() == "secret"
    written = carried_out(tools, Call("write_file", {"name": "a/b.txt", "text": "één"}))
    assert written == ("wrote 3 characters to a/b.txt", True)
    assert carried_out(tools, Call("read_file", {"name": "a/b.txt"})) == ("één", True)
    assert carried_out(tools, Call("list_files", {})) == ("a/b.txt", True)
    (inside / "blob").write_bytes(b"\xff\xfe")
    assert "no text in UTF-8" in carried_out(tools, Call("read_file", {"name": "blob"}))[0]
    assert not carried_out(tools, Call("write_file", {"name": "big", "text": "x" * 200_000}))[1]
    with (inside / "large").open("wb") as file:
        file.truncate(2**40)  # of 2 ** 40 bytes none is read
    assert "1099511627776 bytes, more than" in carried_out(tools, Call("read_file", {"name": "large"}))[0]
    for name in ("n" * 300, "a/b.txt/c"):
        for tool, more in (("read_file", {}), ("write_file", {"text": "x"})):
            result, succeeded = carried_out(tools, Call(tool, {"name": name, **more}))
            assert not succeeded and str(tmp_path) not in result and name[:100] in result
    with pytest.raises(InputError, match="is not a folder"):
        Folder(tmp_path / "none")


def test_notes_are_found_by_their_words_also_in_a_later_run(tmp_path):
    tools = by_name(note_tools(tmp_path / "notes.txt"))
    for note in ("Anna likes tea", "the key is\nblue", "tea is in the red box"):
        assert carried_out(tools, Call("remember", {"note": note}))[1]
    found, _ = carried_out(tools, Call("recall", {"about": "where is the tea box"}))
    assert found.splitlines()[0] == "tea is in the red box"
    assert Notes(tmp_path / "notes.txt").found("key") == ["the key is blue"]
    assert not carried_out(tools, Call("remember", {"note": " "}))[1]


def test_programs_run_in_the_sandbox():
    try:
        tool = PythonCode()
    except InputError as error:
        pytest.skip(str(error))
    assert tool.call({"program": "print(2**10)"}) == "1024\n"
    with pytest.raises(ToolError, match="ZeroDivisionError"):
        tool.call({"program": "1/0"})
    with pytest.raises(ToolError, match="FileNotFoundError|PermissionError"):
        tool.call({"program": "open('/etc/passwd').read()"})


def test_no_agent_gets_a_shell(monkeypatch):
    monkeypatch.setattr("fmjax.tasks.sandbox.choose_unsafe", lambda: True)
    with pytest.raises(InputError, match="FMJAX_UNSAFE_CODE=1 is for evaluation"):
        PythonCode()


def test_what_cannot_be_kept_or_read_is_named(tmp_path, monkeypatch):
    notes = Notes(tmp_path / "notes.txt")
    notes.add("half \ud800")
    assert (tmp_path / "notes.txt").read_text() == "half \ufffd\n"
    monkeypatch.setattr("fmjax.agents.notes.write_whole", lambda path, text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        notes.add("lost")
    assert notes.lines == ["half \ufffd"]
    (tmp_path / "blob").write_bytes(b"\xff")
    with pytest.raises(DataError, match="blob are not UTF-8"):
        Notes(tmp_path / "blob")


def test_search_finds_the_nearest_passages(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("apples are red\n\n" + "x" * 700)
    (tmp_path / "sub" / "b.md").write_text("bananas are yellow")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    found = passages(tmp_path)
    assert [name for name, _ in found] == ["a.txt", "a.txt", "a.txt", "sub/b.md"]
    letters = lambda texts: np.asarray([[text.count(c) + 1e-3 for c in "abnpx"] for text in texts], float)
    tool = Search(found, letters)
    assert tool.call({"query": "banana"}).startswith("[sub/b.md]\nbananas are yellow")
    with pytest.raises(ToolError, match="empty query"):
        tool.call({"query": " "})
    assert split("a\n\nb\n\n" + "c" * 10, longest=6) == ["a\n\nb", "cccccc", "cccc"]
    with pytest.raises(InputError, match="has no texts"):
        passages(tmp_path / "sub" / "..").clear() or passages(_empty(tmp_path))


def test_the_tool_of_the_guide_works(monkeypatch, tmp_path):
    guide = (pathlib.Path(__file__).parents[2] / "fmjax" / "agents" / "README.md").read_text()
    (tmp_path / "my_clock.py").write_text(re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1])
    monkeypatch.syspath_prepend(tmp_path)
    (clock,) = made(["my_clock:Clock"], Places())
    assert re.fullmatch(r"\d\d:\d\d", clock.call({"hours": 3}))
    assert carried_out(by_name([clock]), Call("clock", {"hours": 20})) == ("error: hours are from -12 to 14", False)
    with pytest.raises(InputError, match="did you mean 'search'"):
        made(["serch"], Places())


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"
