"""Transcripts are replayed from what they say: results as they are, the time of the conversation."""

import datetime
import json

import pytest
from scripted import PLAIN, Scripted

from fmjax.agents import transcript
from fmjax.agents.calculator import Calculator
from fmjax.agents.episode import Budget, Episode
from fmjax.agents.formats import chosen
from fmjax.agents.loop import Drawing, run
from fmjax.errors import DataError

DATED = "{{ strftime_now('%d %b %Y') }}\n" + PLAIN


class Long:
    name, description, parameters = "long", "Gives a long text.", {}

    def call(self, arguments):
        return "\u2028" + "x" * 5000


def calls(tool, **arguments):
    return {"thought": "", "tool": tool, "arguments": arguments}


@pytest.fixture
def written(monkeypatch, tmp_path):
    monkeypatch.setattr(transcript, "model_fingerprint", lambda model: "f")
    replies = [calls("calculator", expression="6*7"), calls("calculator", expression="1/0"), calls("long")]
    replies.append({"thought": "", "answer": "42"})
    model, tools = Scripted(replies, DATED), [Calculator(), Long()]
    format = chosen("json", model.tokenizer, tools, datetime.datetime(2020, 3, 4, 5, 6))
    episode = Episode(format, "What?", tools, Budget())
    found = transcript.Transcript(tmp_path / "t.jsonl", transcript.beginning(model, episode, tools, Drawing(), False))
    run(model, [episode], after=lambda number, step: found.add(step, len(episode.steps) - 1))
    found.end(episode, 1.0)
    model.replies = replies
    return found.path, model


def test_a_result_an_error_and_a_result_that_was_cut_are_replayed_on_another_day(written):
    path, model = written
    results = [json.loads(line)["result"] for line in path.read_text().split("\n")[1:4]]
    assert results[0] == "42" and "division by zero" in results[1] and "(cut after 2000 of" in results[2]
    assert "04 Mar 2020" in bytes(i for i in json.loads(path.open().readline())["start"] if i < 256).decode()
    assert transcript.replay(model, path) == 4


@pytest.mark.parametrize("gone", ["fingerprint", "now", "tools", "told"])
def test_lines_that_lack_something_are_named(gone, written, tmp_path):
    lines = [json.loads(line) for line in written[0].read_text().split("\n") if line]
    for line in lines:
        line.pop(gone, None)
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=f"broken.jsonl is no transcript.*has no {gone}"):
        transcript.read(path)
