"""Keep: `python -m fmjax.commands.keep --config=configs/NAME.py --output=FOLDER [--rows=N] [--dtype=float16]
[--config.a.b=value ...]`.

Encodes the images of a config's data once, by the first stage that its objective names, and their captions by the
frozen encoder that it names (`objective.text`). Writes the rows' arrays to a folder that the data `kept` read:
`latents` in place of `images`; `memory`, `memory_mask` and `vector`, what the encoder says, in place of `tokens` and
`segment_ids`; and the others as they are. A run whose config has data.name = "kept" and data.source = FOLDER trains on
them, with objective.input_name = "latents" and, of what an encoder said, objective.condition = "states"; it encodes
nothing in its steps (configs/t2i_shapes.py). Where its captions are dropped, zeros stand in the place of what was said
of them, as with objective.null_tokens = () of captions that are encoded in each step.

The config's data may themselves be kept rows: what they hold already, made by the same models, stays as it is.
"""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.small_files import replacing

READ = {"first_stage": "images", "text": "tokens"}
"""What is encoded: a model by the objective's name for it, and the array that it reads."""
MADE = {"first_stage": "latents", "text": "memory"}
"""What stands in its place in rows that were encoded before."""
DTYPES = ("float32", "float16")


def parse(argv: list[str]):
    """(flags, overrides of the config) of a command line. Raises InputError naming the flag that is wrong."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.ArgumentParser("python -m fmjax.commands.keep", __doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="a Python file with get_config(), as for fmjax.train")
    parser.add_argument("--output", required=True, help="the folder to write, which is not there yet")
    parser.add_argument("--rows", type=cli.number(int, low=1), default=10_000, help="rows to train on (default: 10000)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help=f"of what is encoded in the files (default: {DTYPES[0]})"
    )
    parser.add_argument("--batch_size", type=cli.number(int, low=1), default=64, help="rows encoded at once")
    return parser.parse_args(rest), overrides


def main(argv: list[str]) -> None:
    flags, overrides = parse(argv)
    cli.log_to_stderr()
    from fmjax import config as configs

    config = configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    output = cli.new_output(flags.output)
    written = keep(config, output, flags.rows, flags.batch_size, flags.dtype, progress=sys.stderr.isatty())
    print(f"wrote {output}: {', '.join(f'{rows} rows of {split}' for split, rows in written.items())}")


def keep(
    config, output: pathlib.Path, rows: int, batch_size: int = 64, dtype: str = "float32", progress: bool = False
) -> dict[str, int]:
    """Writes the folder, whole or not at all; see the module. Latents are draws, with a key a row. What is
    encoded is computed in float32.

    Args:
      config: a resolved config, whose objective names a `first_stage`, a frozen encoder `text`, or both.
      rows: of the training data, the first ones; of those that are evaluated all.
      dtype: of the files of what is encoded.

    Returns: how many rows each split has.
    Raises InputError where the objective names neither, or the data hold no images or captions, or others than they
    encode, or what another model made of them, and where what is encoded is not finite in `dtype`.
    """
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir
    from fmjax.commands.kept_folder import write_rows
    from fmjax.config_values import json_copy
    from fmjax.data.codecs.base import save_codecs
    from fmjax.data.kept import MADE_BY, MADE_OF, made_of
    from fmjax.load import content_of

    data = open_data(config, cache_dir(), progress=progress)
    models = _opened(config, data)
    found = {"train": (data.train, rows)} | {name: (one, len(one)) for name, one in data.evaluation.items()}
    with replacing(output) as partial:
        for number, (split, (source, count)) in enumerate(found.items()):
            folder = partial / split
            folder.mkdir(parents=True)
            made = _encoded(models, source, count, batch_size, config["seed"], number)
            write_rows(folder, _cast(made, dtype, split), count)
        made_by = {name: data.identity[name] for name in READ if name in data.identity}
        made_by |= {name: content_of(model) for name, model in models.items()}
        section = json_copy(made_of(config["data"].to_dict()))
        for name, values in ((MADE_BY, made_by), (MADE_OF, section)):
            (partial / name).write_text(json.dumps(values) + "\n", encoding="utf-8")
        save_codecs(data.codecs, partial)
        if data.tokenizer is not None:
            data.tokenizer.save(partial)
    return {split: count for split, (_, count) in found.items()}


def _opened(config, data) -> dict[str, Any]:
    """{"first_stage", "text"}: those of the two that the objective names and that have not encoded the rows yet,
    loaded. Raises as `keep` does."""
    from fmjax.config import build
    from fmjax.load import check_cut_alike, content_of, load
    from fmjax.models.text_to_image import check_encoder
    from fmjax.objectives import OBJECTIVES
    from fmjax.objectives.latent_diffusion import check_images
    from fmjax.training.other_models import check_normalised

    paths = getattr(build(config["objective"], OBJECTIVES), "models", dict)()
    paths = {name: paths[name] for name in READ if name in paths}
    if not paths:
        raise InputError(
            "the config's objective names nothing to encode with: a first_stage of images, or a frozen encoder of "
            "captions, objective.text"
        )
    row, found = data.train[0], {}
    for name, path in paths.items():
        if READ[name] in row:
            found[name] = load(path)
        elif MADE[name] not in row:
            raise InputError(f"objective.{name}: a row of these data has no {READ[name]!r}, but {', '.join(row)}")
        elif data.identity.get(name) not in (None, content_of(load(path))):  # None: nothing says what made them
            raise InputError(f"objective.{name} = {path!r}: another model made the {MADE[name]!r} of these rows")
    if not found:
        held = " and ".join(MADE[name] for name in paths)
        raise InputError(f"rows of these data hold {held} already: nothing to encode")
    if "first_stage" in found:
        check_normalised("first_stage", paths["first_stage"], data.codecs)
        check_images(found["first_stage"].module, paths["first_stage"], row["images"].shape)
    if "text" in found:
        check_cut_alike("the objective's model 'text'", paths["text"], data)
        check_encoder(found["text"].module, "objective.text")
    return found


def _encoded(
    models: dict[str, Any], source, count: int, size: int, seed: int, number: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Batches of rows, each of at most `size`: (what is encoded: `latents` in place of `images`, and states in place of
    tokens; the other arrays)."""
    import jax
    import jax.numpy as jnp

    from fmjax.data.base import stacked

    key = jax.random.fold_in(jax.random.key(seed), number)

    @jax.jit
    def latents(variables, images, places):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        return models["first_stage"].module.apply(variables, images, keys, method="encode")

    @jax.jit
    def states(variables, tokens, segment_ids):
        return models["text"].module.apply(variables, tokens, segment_ids, method="text_states")

    for first in range(0, count, size):
        places = np.minimum(np.arange(first, first + size), count - 1)
        batch = stacked([source[int(place)] for place in places])
        del batch["loss_weights"]
        made = {}
        if "first_stage" in models:
            made["latents"] = latents(models["first_stage"].variables, batch.pop("images"), jnp.asarray(places))
        if "text" in models:
            made |= states(models["text"].variables, batch.pop("tokens"), batch.pop("segment_ids"))
        made = {name: np.asarray(array) for name, array in made.items() if array is not None}
        yield tuple({name: array[: count - first] for name, array in arrays.items()} for arrays in (made, batch))


def _cast(batches: Iterator[tuple[dict, dict]], dtype: str, split: str) -> Iterator[dict[str, np.ndarray]]:
    """The rows of both, floats of what is encoded in `dtype`. Raises InputError naming split, row and array of the
    first that is not finite there."""
    first = 0
    for made, others in batches:
        for name, array in made.items():
            if array.dtype.kind == "f":
                with np.errstate(over="ignore"):  # told below
                    made[name] = array.astype(dtype)
                finite = np.isfinite(made[name]).reshape(len(array), -1).all(axis=1)
                if not finite.all():
                    row = int(finite.argmin())
                    raise InputError(_not_finite(f"{split}, row {first + row}, {name}", array[row], dtype))
        rows = others | made
        first += len(next(iter(rows.values())))
        yield rows


def _not_finite(where: str, row: np.ndarray, dtype: str) -> str:
    """Why the files cannot hold a row of float32."""
    if np.isfinite(row).all():
        limit = np.finfo(dtype).max
        return f"{where}: {np.abs(row).max():g} is beyond what {dtype} holds, {limit:g}; give --dtype=float32"
    return f"{where}: the encoder says {row[~np.isfinite(row)][0]}, in float32; look at its weights and at this row"


if __name__ == "__main__":
    cli.leave(cli.run(main))
