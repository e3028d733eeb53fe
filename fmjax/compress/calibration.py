"""What a model is given while it is compressed: rows of its module's inputs, of texts, pictures or arrays."""

import pathlib

import numpy as np

from fmjax.data.formats import Reading, read_file
from fmjax.errors import InputError
from fmjax.inference import kinds, values
from fmjax.inference.model import Model


def read_calibration(
    path: str | pathlib.Path, model: Model, rows: int = 128, length: int = 512
) -> dict[str, np.ndarray]:
    """The module's inputs by name, [N, ...] each.

    Args:
      path: a file of texts, whose documents are joined with EOS between them and cut into `rows` rows of `length`
        tokens, as far apart as they can be (BOS in front of each where the model's texts begin with it); a folder of
        files for the codec of a model that reads something else, the first `rows` of them by name; or FILE.npz with the
        inputs themselves, by name.
      rows, length: of texts; the latter at most the model's context.

    Raises InputError where there is too little, the model reads nothing of the kind, or an id is not in its vocabulary.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise InputError(f"calibration = {str(path)!r} does not exist")
    if path.suffix == ".npz":
        return _arrays(path, model, rows)
    if path.is_dir():
        return _files(path, model, rows)
    return _texts(path, model, rows, length)


def _texts(path: pathlib.Path, model: Model, rows: int, length: int) -> dict[str, np.ndarray]:
    if not kinds.reads_tokens(model.module):
        raise InputError(f"calibration = {str(path)!r} is a file of texts, and {model} reads none")
    if model.context_length is not None and length > model.context_length:
        raise InputError(f"calibration_length = {length} is more than the {model.context_length} that {model} reads")
    joined, end = [], getattr(model.tokenizer, "eos_id", None)
    for text in (text for _, text in read_file(path, Reading())):
        joined += ([end] if joined and end is not None else []) + model.tokens([text])[0]
    begins = [model.tokenizer.bos_id] if model.add_bos and model.tokenizer.bos_id is not None else []
    own = length - len(begins)
    if len(joined) < rows * own:
        raise InputError(
            f"calibration = {str(path)!r} has {len(joined)} tokens, and {rows} rows of {length} need {rows * own}; "
            "give more text, or a smaller calibration_rows or calibration_length"
        )
    starts = np.linspace(0, len(joined) - own, rows).astype(int)
    return {"tokens": np.asarray([begins + joined[start : start + own] for start in starts], np.int32)}


def _files(folder: pathlib.Path, model: Model, rows: int) -> dict[str, np.ndarray]:
    if len(model.reads) != 1:
        reads = ", ".join(model.reads) or "tokens"
        raise InputError(f"calibration = {str(folder)!r} is a folder, which is of one modality; {model} reads {reads}")
    files = sorted(file for file in folder.rglob("*") if file.is_file())[:rows]
    if len(files) < rows:
        raise InputError(f"calibration = {str(folder)!r} has {len(files)} files, and {rows} rows are asked for")
    (modality,) = model.reads
    return values.encode(model, files, modality)


def _arrays(path: pathlib.Path, model: Model, rows: int) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        found = {name: stored[name][:rows] for name in stored.files}
    taken = kinds.inputs(model.module)
    if lost := [name for name in found if name not in taken]:
        raise InputError(f"calibration = {str(path)!r} has {lost[0]!r}, and {model} takes {', '.join(taken)}")
    sizes = {len(array) for array in found.values()}
    if sizes != {rows}:
        raise InputError(f"calibration = {str(path)!r} has {sorted(sizes)} rows, and {rows} are asked for")
    vocabulary = getattr(model.module, "vocab_size", None)
    if "tokens" in found and (below := found["tokens"].min()) < 0:
        raise InputError(f"calibration = {str(path)!r} has the token {below}; tokens are whole numbers from 0")
    if "tokens" in found and vocabulary is not None and found["tokens"].max() >= vocabulary:
        raise InputError(
            f"calibration = {str(path)!r} has the token {found['tokens'].max()}, and {model} knows {vocabulary}: it is "
            "of another tokenizer"
        )
    return found
