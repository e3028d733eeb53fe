"""Process rewards: where steps end, what is learnt of them, and what a model says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_model

from fmjax.data.chats.arithmetic import solutions
from fmjax.data.chats.stepwise import StepData, read_solution
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.tokenizers.templates import TURNS
from fmjax.errors import DataError, InputError
from fmjax.objectives.step_rewards import StepRewards

TEMPLATE = dict(tokenizer="bytes", chat_template="turns", sequence_length=160, heldout_fraction=0.1)


def test_labels_stand_at_the_last_character_of_a_step(tmp_path):
    data = StepData(**TEMPLATE).open(seed=0, cache_dir=tmp_path)
    known = {one["prompt"]: one for one in solutions()}
    for index in range(5):
        row = data.train[index]
        text = "".join(chr(id) if id < 256 else "|" for id in row["tokens"][row["segment_ids"] > 0])
        record = known[text.split("user\n")[1].split("|")[0]]
        places = np.flatnonzero(row["loss_weights"])
        begin = text.index("assistant\n") + len("assistant\n")
        ends = begin + np.cumsum([len(step) + 1 for step in record["steps"]]) - 2
        np.testing.assert_array_equal(places, ends)
        np.testing.assert_array_equal(row["step_labels"][places], np.array(record["labels"], np.float32))
    example = StepData(**TEMPLATE).example
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {k: (v.shape, v.dtype) for k, v in row.items()}


def test_sums_by_hand():
    scores = jnp.array([[1.0, -2.0, 9.0], [0.5, 3.0, 9.0]])
    batch = {"loss_weights": jnp.array([[1.0, 1, 0], [1, 1, 0]]), "step_labels": jnp.array([[1.0, 0, 0], [0, 0.75, 0]])}
    sums = {name: [float(x) for x in pair] for name, pair in StepRewards().sums(scores, batch).items()}
    right, wrong = (np.log1p(np.exp(sign * np.array([1.0, -2.0, 0.5, 3.0]))) for sign in (-1, 1))
    loss = right[0] + wrong[1] + wrong[2] + 0.75 * right[3] + 0.25 * wrong[3]
    assert sums["loss"] == pytest.approx([loss, 4.0], rel=1e-5)
    assert sums["right"] == pytest.approx([(1 / (1 + np.exp([-1.0, 2.0, -0.5, -3.0]))).sum(), 4.0], rel=1e-5)
    # The worst step of the first row is found to be wrong, and is; that of the second to be right, and is not.
    assert sums["accuracy"] == [3, 4] and sums["solution_accuracy"] == [1, 2]


def test_a_reward_model_scores_steps():
    section = {"name": "llama", "num_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    section |= {"max_length": 96, "vocab_size": 258}
    model = random_model({"name": "reward", "decoder": section}, ByteTokenizer({"default": TURNS}))
    (found, other) = model.can("process_reward")([("What?", ["a = 1", "b = 2"]), ("Who?", ["c"])])
    ids = [*model.encode_chat([{"role": "user", "content": "What?"}]), *b"a = 1\nb = 2"]
    tokens = jnp.array([ids])
    scores = model.module.apply({"params": model.params}, tokens, jnp.ones_like(tokens), method="all_scores")[0]
    places = [len(ids) - 7, len(ids) - 1]  # of "1" and "2"
    np.testing.assert_allclose(found, jax.nn.sigmoid(scores[jnp.array(places)]), rtol=1e-4)
    assert abs(found[0] - found[1]) > 1e-3
    whole = model.can("reward")([("What?", "a = 1\nb = 2")])
    assert len(found) == 2 and len(other) == 1 and 0 < min(found) and max(found) < 1 and len(whole) == 1
    with pytest.raises(InputError, match="must be \\(prompt, steps\\)"):
        model.can("process_reward")([("What?", "a = 1")])


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": "a", "steps": ["b"], "labels": []}, "1 steps and 0 labels"),
        ({"prompt": "a", "steps": ["b"], "labels": [2]}, "a label from 0 to 1, found 2"),
        ({"prompt": "a", "steps": ["b"], "labels": [None]}, r"here, steps\[0\]: .* found None"),
        ({"prompt": "a", "text": "b"}, "no judged steps"),
        ({"prompt": "a", "steps": [" "], "labels": [1]}, "an empty one"),
    ],
)  # fmt: skip
def test_what_is_no_solution_is_refused(record, message):
    with pytest.raises(DataError, match=message):
        read_solution(record, "here")
