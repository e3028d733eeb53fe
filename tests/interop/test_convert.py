"""`python -m fmjax.convert`, there and back."""

import folders
import pytest
from safetensors.numpy import load_file

from fmjax import convert
from fmjax.commands import cli
from fmjax.data.tokenizers.loading import ByteTokenizer


def run(*argv):
    return cli.run(convert.main, list(argv))


def test_there_and_back_keeps_every_byte(tmp_path, capsys):
    weights = folders.part(folders.read("qwen3"), "weight/")
    half = {name: value.astype("float16") for name, value in weights.items()}
    config = folders.published(tmp_path / "x", "qwen3") / "config.json"
    folder = folders.write(tmp_path / "published", half, {})
    (folder / "config.json").write_text(config.read_text())
    assert run(f"--input={folder}", f"--output={tmp_path / 'ours'}", "--to=fmjax", "--dtype=float32") == 0
    assert "Qwen3" in capsys.readouterr().out
    assert run(f"--input={tmp_path / 'ours'}", f"--output={tmp_path / 'back'}", "--to=hf") == 0
    assert run(f"--input={folder}", f"--output={tmp_path / 'same'}", "--to=hf") == 0
    for name, dtype in (("back", "float32"), ("same", "float16")):
        found = load_file(tmp_path / name / "model.safetensors")
        assert set(found) == set(half)
        assert all(v.dtype == dtype and (v == half[k]).all() for k, v in found.items())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input=IN", "--output=IN", "--to=hf"], "already holds a model"),
        (["--input=nowhere", "--output=OUT", "--to=hf"], "'nowhere' does not exist"),
        (["--input=IN", "--output=OUT", "--to=onnx"], "onnx"),
        (["--input=IN", "--output=OUT", "--to=hf", "--dtype=int8"], "dtype='int8'"),
        (["--input=IN", "--output=OUT"], "--to"),
        (["--inptu=IN"], "did you mean '--input'"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(argv, message, tmp_path, capsys):
    folder = folders.published(tmp_path / "in", "gpt2")
    argv = [a.replace("=IN", f"={folder}").replace("=OUT", f"={tmp_path / 'out'}") for a in argv]
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_fit_stops_the_conversion(tmp_path, capsys):
    folder = folders.published(tmp_path / "in", "gpt2")
    ByteTokenizer().save(folder)
    assert run(f"--input={folder}", f"--output={tmp_path / 'out'}", "--to=fmjax") == 2
    assert "258 tokens" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    folder = folders.published(tmp_path / "in", "gpt2")
    monkeypatch.setattr("fmjax.checkpoint_files.save_params", full)
    with pytest.raises(OSError, match="No space"):
        run(f"--input={folder}", f"--output={tmp_path / 'out'}", "--to=fmjax")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
