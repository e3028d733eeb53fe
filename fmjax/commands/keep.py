"""Keep: `python -m fmjax.commands.keep --config=configs/NAME.py --output=FOLDER [--rows=N] [--dtype=float16]
[--config.a.b=value ...]`.

Encodes the images of a config's data once, by the first stage that its objective names, and writes the rows' arrays to
a folder that the data `kept` read: `latents` in place of `images`, and the others as they are. A run whose config has
data.name = "kept", data.source = FOLDER and objective.input_name = "latents" trains on them, and encodes nothing in its
steps (configs/t2i_shapes.py).
"""

import json
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.small_files import replacing

LEFT_OUT = ("images", "loss_weights", "latents")
DTYPES = ("float32", "float16")


def parse(argv: list[str]):
    """(flags, overrides of the config) of a command line. Raises InputError naming the flag that is wrong."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.ArgumentParser("python -m fmjax.commands.keep", __doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="a Python file with get_config(), as for fmjax.train")
    parser.add_argument("--output", required=True, help="the folder to write, which is not there yet")
    parser.add_argument("--rows", type=cli.number(int, low=1), default=10_000, help="rows to train on (default: 10000)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the latents in the files (default: {DTYPES[0]})"
    )
    parser.add_argument("--batch_size", type=cli.number(int, low=1), default=64, help="images encoded at once")
    return parser.parse_args(rest), overrides


def main(argv: list[str]) -> None:
    flags, overrides = parse(argv)
    cli.log_to_stderr()
    from fmjax import config as configs

    config = configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    output = pathlib.Path(flags.output).expanduser()
    if output.exists():
        raise InputError(f"--output={str(output)!r} is there already; choose another")
    if not output.parent.is_dir():
        raise InputError(f"--output={str(output)!r}: the folder {str(output.parent)!r} does not exist")
    written = keep(config, output, flags.rows, flags.batch_size, flags.dtype, progress=sys.stderr.isatty())
    print(f"wrote {output}: {', '.join(f'{rows} rows of {split}' for split, rows in written.items())}")


def keep(
    config, output: pathlib.Path, rows: int, batch_size: int = 64, dtype: str = "float32", progress: bool = False
) -> dict[str, int]:
    """Writes the folder, whole or not at all; see the module. Latents are draws, computed in float32, with a key a row.

    Args:
      config: a resolved config, whose objective names a `first_stage`.
      rows: of the training data, the first ones; of those that are evaluated all.
      dtype: of the latents' files.

    Returns: how many rows each split has.
    Raises InputError where the objective names no first stage, or the data hold no images, or others than it encodes.
    """
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir
    from fmjax.data.codecs.base import save_codecs
    from fmjax.data.kept import MADE_BY
    from fmjax.load import content_of, load
    from fmjax.objectives.latent_diffusion import check_images
    from fmjax.training.other_models import check_normalised

    path = config["objective"].get("first_stage")
    if not path:
        raise InputError("the config's objective.first_stage names nothing to encode with")
    data, stage = open_data(config, cache_dir(), progress=progress), load(path)
    row = data.train[0]
    if "images" not in row:
        raise InputError(f"a row of these data has no 'images', but {', '.join(row)}")
    check_normalised("first_stage", path, data.codecs)
    check_images(stage.module, path, row["images"].shape)
    found = {"train": (data.train, rows)} | {name: (one, len(one)) for name, one in data.evaluation.items()}
    with replacing(output) as partial:
        for number, (split, (source, count)) in enumerate(found.items()):
            folder = partial / split
            folder.mkdir(parents=True)
            _write(folder, _encoded(stage, source, count, batch_size, config["seed"], number, dtype), count)
        (partial / MADE_BY).write_text(json.dumps({"first_stage": content_of(stage)}) + "\n", encoding="utf-8")
        save_codecs(data.codecs, partial)
        if data.tokenizer is not None:
            data.tokenizer.save(partial)
    return {split: count for split, (_, count) in found.items()}


def _encoded(
    stage, source, count: int, size: int, seed: int, number: int, dtype: str
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of rows, each of at most `size`, with `latents` in place of `images`."""
    import jax
    import jax.numpy as jnp

    from fmjax.data.base import stacked

    key = jax.random.fold_in(jax.random.key(seed), number)

    @jax.jit
    def encode(variables, images, places):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        return stage.module.apply(variables, images, keys, method="encode")

    for first in range(0, count, size):
        places = np.minimum(np.arange(first, first + size), count - 1)
        batch = stacked([source[int(place)] for place in places])
        latents = np.asarray(encode(stage.variables, batch["images"], jnp.asarray(places))).astype(dtype)
        kept = {name: array for name, array in batch.items() if name not in LEFT_OUT} | {"latents": latents}
        yield {name: array[: count - first] for name, array in kept.items()}


def _write(folder: pathlib.Path, batches: Iterator[dict[str, np.ndarray]], count: int) -> None:
    """Writes a file an array, each as long as all batches together, one batch at a time in memory."""
    files, first = {}, 0
    for batch in batches:
        for name, array in batch.items():
            if name not in files:
                shape = (count, *array.shape[1:])
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, shape)
            files[name][first : first + len(array)] = array
        first += len(next(iter(batch.values())))
    for file in files.values():
        file.flush()


if __name__ == "__main__":
    cli.leave(cli.run(main))
