"""The page on adding a task: its complete file is short and runs as it stands."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

import fmjax
from fmjax import evaluate
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.load import Model
from fmjax.models.gpt import GPT
from tests.quick_keys import quick_key

PAGE = (pathlib.Path(fmjax.__file__).parent / "tasks" / "README.md").read_text()


def test_the_complete_file_runs(tmp_path):
    (source, *_) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert source.count("\n") < 40
    (tmp_path / "capitals.py").write_text(source)
    module = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=256, vocab_size=258)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    (command,) = re.findall(r"python -m fmjax.evaluate (.*--task_path.*)", PAGE)
    flags = evaluate.parse(command.split())
    report = fmjax.evaluate(
        Model(module, params, {}, ByteTokenizer()),
        flags.tasks.split(","),
        task_path=[tmp_path / "capitals.py"],
        num_shots=flags.num_shots,
    )
    assert 0 <= report["results"]["capitals"]["acc"] <= 1
    assert {"acc", "acc_perturbed", "acc_drop"} < set(report["results"]["capitals+typos"])
