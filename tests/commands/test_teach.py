"""What a teacher says, kept: rows that an interrupted command completes, and the loss of a run on them."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from fmjax import config as configs
from fmjax.assemble import build_module, open_data
from fmjax.commands import teach as command
from fmjax.config import build
from fmjax.data.base import stacked
from fmjax.data.digits import Digits
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import ConfigError, InputError
from fmjax.load import load
from fmjax.objectives import OBJECTIVES
from fmjax.objectives.base import OtherModel
from fmjax.training.checks import check_fit
from fmjax.training.loop import train
from tests.small_models import byte_model

V = ByteTokenizer().vocab_size
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a teacher and a text."""
    folder = tmp_path_factory.mktemp("teach")
    byte_model(ByteTokenizer()).save(folder / "teacher")
    (folder / "text.txt").write_text("A rose is a rose is a rose, and a row is a row.\n" * 40)
    return folder


def config_for(folder, data=None, **objective):
    size = {"num_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 4, "max_length": 32}
    own = {"name": "distillation", "teacher": str(folder / "teacher"), "sample_prompts": (), "temperature": 2.0}
    return configs.resolve({
        "train": {"steps": 2, "batch_size": 8, "sample_every": -1, "tensorboard": False},
        "mesh": {"data": 1},
        "model": {"name": "llama", **size}, "objective": own | objective,
        "data": data or {"source": str(folder / "text.txt"), "sequence_length": 24, "tokenizer": "bytes",
                         "eval_source": str(folder / "text.txt")},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip


def kept(folder, name):
    return {path.relative_to(folder / name).as_posix(): np.load(path) for path in (folder / name).rglob("*.npy")}


@pytest.fixture(scope="module")
def whole(folder):
    """All answers of the teacher to twenty rows, and how much is left out."""
    _, rest = command.teach(config_for(folder), folder / "whole", 20, V, 8, batch_size=8, dtype="float32")
    return folder / "whole", rest


def test_an_interrupted_command_goes_on_and_ends_with_the_same_rows(folder, whole, monkeypatch):
    plain, calls = command._plain, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    options = dict(eval_rows=8, batch_size=8, dtype="float32")
    monkeypatch.setattr(command, "_plain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.teach(config_for(folder), folder / "again", 20, V, **options)
    assert not (folder / "again").exists()
    with pytest.raises(InputError, match="(?s)was begun with something else:.*top_k: 258 there, 4 in this call"):
        command.teach(config_for(folder), folder / "again", 20, 4, **options)
    command.teach(config_for(folder), folder / "again", 20, V, **options)
    assert len(calls) == 5, "of four batches two were there already"
    first, second = kept(folder, "whole"), kept(folder, "again")
    assert {"train/tokens.npy", "train/teacher_ids.npy"} <= first.keys() and first.keys() == second.keys()
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert first["train/teacher_ids.npy"].shape == (20, 24, V) and first["train/teacher_ids.npy"].dtype == np.uint16
    assert not list(folder.rglob("*.unfinished")) and not list(folder.rglob("progress.json"))


def test_the_loss_on_rows_with_all_answers_is_that_beside_the_teacher(folder, whole):
    path, rest = whole
    assert rest == 0
    source = config_for(folder, {"name": "kept", "source": str(path)}, teacher="")
    data = open_data(source, folder / "cache")
    made_of = open_data(config_for(folder), folder / "cache").identity
    assert {f"rows/{name}": value for name, value in made_of.items()}.items() <= data.identity.items()
    assert data.identity["teacher"] and data.identity["teacher_temperature"] == "2.0"
    module = build_module(source, data.model_fields)
    objective, live = (build(one["objective"], OBJECTIVES) for one in (source, config_for(folder)))
    check_fit(data, module, objective)
    with pytest.raises(ConfigError, match=f"what a teacher of {V} answers said, and model.vocab_size = {V + 1}"):
        objective.check(module.clone(vocab_size=V + 1), data)
    batch = {name: x for name, x in stacked([data.train[i] for i in range(8)]).items()}
    inputs = live.inputs(batch)
    params = nn.unbox(jax.jit(lambda key: module.init(key, **inputs)["params"])(jax.random.key(0)))
    teacher = load(folder / "teacher")
    models = {"teacher": OtherModel(teacher.module, teacher.params)}

    def found(objective, models):
        def loss(params):
            return objective(module.apply, params, batch, None, True, models=models)["loss"][0]

        return jax.jit(jax.value_and_grad(loss))(params)

    ours, theirs = found(objective, None), found(live, models)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours[1], theirs[1])


def test_a_run_learns_from_few_answers_and_refuses_what_they_are_not(folder):
    rows, rest = command.teach(config_for(folder), folder / "few", 16, 4, eval_rows=9, batch_size=8)
    assert rows == 16
    assert {len(array) for name, array in kept(folder, "few").items() if "heldout" in name} == {9}
    assert 0.5 < rest < 0.99  # of a teacher that knows nothing
    rows = {"name": "kept", "source": str(folder / "few")}
    options = dict(cache_dir=folder / "cache", progress=False)
    metrics = train(config_for(folder, rows, teacher=""), folder / "run", **options)
    assert 0 < metrics["train/divergence"] < 10 and load(folder / "run").tokenizer.vocab_size == V
    with pytest.raises(ConfigError, match="objective.temperature = 1.0, and these rows have .* said at 2.0"):
        train(config_for(folder, rows, teacher="", temperature=1.0), folder / "cold", **options)
    with pytest.raises(ConfigError, match="objective.teacher is empty, and these data have no teacher_ids"):
        train(config_for(folder, teacher=""), folder / "none", **options)
    with pytest.raises(InputError, match="'causal_lm' has no objective.teacher"):
        causal = config_for(folder).to_dict() | {"objective": {"name": "causal_lm"}}
        command.teach(configs.resolve(causal), folder / "other", 8, 4)
    with pytest.raises(InputError, match=f"--top_k = 300 is more than the {V} answers"):
        command.teach(config_for(folder), folder / "many", 8, 300)


def test_no_row_is_kept_twice(folder):
    """All rows of an epoch where no number is given."""
    there = len(open_data(config_for(folder), folder / "cache").evaluation["heldout"])  # of the same text
    assert 20 < there < 200
    with pytest.raises(InputError, match=f"--rows = {there + 1} is more than the {there} rows that these data have"):
        command.teach(config_for(folder), folder / "twice", there + 1, 2)
    rows, _ = command.teach(config_for(folder), folder / "all", None, 2, eval_rows=1)
    train = {path: x for path, x in kept(folder, "all").items() if path.startswith("train/")}
    assert rows == len(train["train/tokens.npy"]) == there
    assert open_data(config_for(folder, {"name": "kept", "source": str(folder / "all")}), folder).num_train == there


def test_images_that_are_moved_come_again_as_other_rows(folder):
    """Of these more rows are kept than there are images."""
    for shift in (0, 1):
        data = Digits(max_shift=shift).open(seed=0, cache_dir=folder / "cache")
        seen = {data.train[i]["images"].tobytes() for i in range(2 * data.num_train)}
        assert data.drawn_anew == (len(seen) > data.num_train) == bool(shift)
