"""Episodes as rows to learn from: what was drawn has a loss, what a tool gave has none."""

import json
import pathlib
import types

import numpy as np
import pytest
from scripted import PLAIN, Bytes, Scripted

from fmjax import config as configs
from fmjax.agents.objective import AgentGRPO, AgentReinforce
from fmjax.agents.problems import demonstrations, right_sum, sums
from fmjax.errors import ConfigError
from fmjax.training.loop import train

FILE = pathlib.Path(__file__).parents[2] / "configs" / "agent_tiny.py"
REWARD = {"reward": "fmjax.agents.problems:right_sum"}


class Served(Scripted):
    """A script in the place of a run's model."""

    @property
    def served(self):
        return self


def goals(*texts):
    ids = [[256, *text.encode()] for text in texts]
    tokens = np.zeros((len(ids), 6), np.int32)
    for row, one in zip(tokens, ids):
        row[: len(one)] = one
    return {"tokens": tokens, "lengths": np.asarray([len(one) for one in ids], np.int32)}


def test_a_row_is_an_episode_whose_drawn_tokens_have_a_loss():
    objective = AgentReinforce(**REWARD, num_samples=2, max_new_tokens=20, max_length=192, max_steps=3)
    model = Served(["calculator 12+34", "answer 46", "answer 9", "nonsense", "answer 46", "x", "answer 55"])
    prompts = goals("12+34", "11+22")
    replies = objective.draw(model, prompts, 2, 1.0, 0)
    rows = objective.laid(prompts, replies)
    assert [one.text for one in replies] == ["46", "46", "9", "55"] and {one.finish for one in replies} == {"stop"}
    written = "> 12+34\ncalculator 12+34\n= 46\nanswer 46\n"
    tokens, targets, weights = (rows[name][0] for name in ("tokens", "targets", "loss_weights"))
    length = len(written)  # BOS in front, the last byte no input
    assert bytes(tokens[1:length].tolist()).decode() == written[:-1] and tokens[0] == 256
    assert bytes(targets[weights > 0].tolist()).decode() == "calculator 12+34\nanswer 46\n"
    assert rows["segment_ids"][0].sum() == length and not targets[weights == 0].any()
    assert (rows["sampler_logprobs"][0] == -0.5 * weights).all()
    found = objective.graded(model, prompts, replies, 2)
    assert found.total.tolist() == [1.0, 1.0, 0.0, 0.0]
    shapes = {name: spec.shape for name, spec in objective.collected({k: v[0] for k, v in prompts.items()}).items()}
    assert shapes["tokens"] == rows["tokens"].shape[1:] == (191,)


def test_rewards_and_demonstrations():
    assert right_sum(["12+34", "1+1"], ["it is 46", ""]) == [1.0, 0.0]
    shown = demonstrations(200)
    assert len(sums()) == 8100 and 60 < sum("calculator" in one for one in shown) < 140
    assert all(right_sum([one[2:7]], [one])[0] for one in shown if "calculator" in one)


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(ConfigError, match="overlong_buffer is of replies"):
        AgentGRPO(**REWARD, overlong_buffer=4)
    with pytest.raises(ConfigError, match="a reward model reads one reply"):
        AgentReinforce(rewards={"taste": {"models": ("runs/reward",)}})
    with pytest.raises(ValueError, match="the tool files needs --files"):
        AgentGRPO(**REWARD, tools=("files",))
    module = types.SimpleNamespace(features=None, init_cache=None, max_length=64)
    data = types.SimpleNamespace(train=[{k: v[0] for k, v in goals("1+1").items()}], tokenizer=Bytes(PLAIN))
    with pytest.raises(ConfigError, match="would be held to a JSON schema"):
        AgentReinforce(**REWARD, max_length=64).check(module, data)
    data.tokenizer = Bytes()
    with pytest.raises(ConfigError, match="max_length = 256 is more than model.max_length = 64"):
        AgentReinforce(**REWARD).check(module, data)


@pytest.mark.usefixtures("one_device")
def test_the_trainer_finds_the_log_probabilities_that_episodes_kept(tmp_path):
    raw = configs.load_config_file(f"{FILE}:{tmp_path}")
    raw["train"]["init_from"] = None
    short = {
        "train.steps": "2", "train.batch_size": "8", "train.log_every": "1", "train.checkpoint_every": "2",
        "train.eval_every": "2", "train.tensorboard": "false", "model.hidden_size": "16",
        "model.intermediate_size": "32", "model.num_heads": "2", "objective.num_samples": "4",
        "objective.decode_rows": "8", "objective.max_new_tokens": "12",
    }  # fmt: skip
    train(configs.resolve(configs.apply_overrides(raw, short)), tmp_path / "run", cache_dir=tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "train/logprob_difference" in row]
    assert len(found) == 2
    for row in found:
        assert row["train/logprob_difference"] == 0.0 and row["train/sampler_difference"] < 1e-5
        assert row["train/reply_tokens"] > 5
