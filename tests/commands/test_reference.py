"""What a reference says of judged answers, written beside them."""

import json

import numpy as np
import pytest
from small_models import byte_model

from fmjax.commands import reference
from fmjax.data.chats.ranked import PreferenceData
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.tokenizers.templates import TURNS
from fmjax.errors import DataError

RECORDS = [
    {"id": 3, "prompt": "What?", "chosen": "This.", "rejected": "That, and more."},
    {"prompt": "Who?", "responses": ["I", "you", "they"], "ranks": [1, 2, 2]},
]


def test_records_come_back_with_log_probabilities_of_their_answers(tmp_path):
    model = byte_model(ByteTokenizer({"default": TURNS}))
    model.save(tmp_path / "model")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    flags = [f"--model={tmp_path / 'model'}", f"--source={tmp_path / 'a.jsonl'}", f"--output={tmp_path / 'b.jsonl'}"]
    reference.main(flags)
    found = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in record.items() if k != "reference_logprobs"} for record in found] == RECORDS
    fields = {"sequence_length": 64, "num_answers": 3, "chat_template": "turns", "heldout_fraction": 0.0}
    data = PreferenceData(source=str(tmp_path / "b.jsonl"), **fields).open(seed=0, cache_dir=tmp_path / "cache")
    for row in (data.train[0], data.train[1]):
        logits = np.asarray(model.apply(row["tokens"]), np.float64)
        chosen = np.take_along_axis(logits, row["targets"][..., None], axis=-1)[..., 0]
        logprobs = ((chosen - np.log(np.exp(logits).sum(axis=-1))) * row["loss_weights"]).sum(axis=-1)
        np.testing.assert_allclose(row["reference_logprobs"], logprobs, rtol=1e-5)
    with pytest.raises(DataError, match="b.jsonl is there already"):
        reference.main(flags)
