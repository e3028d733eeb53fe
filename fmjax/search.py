"""Search: `python -m fmjax.search --model=DIR_OR_HUB_ID --images=FOLDER` and one of

--query=TEXT            the images nearest to a text, of a model of both, such as CLIP
--query_image=FILE      the images nearest to one, of any model that gives vectors of images

prints them, nearest first; `--output=FILE.png` is a sheet of them. The folder's index is kept: only images that are new
or changed since the last search are read by the model, and one that was interrupted goes on where it stopped.
"""

import logging
import pathlib
import sys

from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.inference.image_index import BAD_IMAGES
from fmjax.inference.nearest import NEIGHBOURS
from fmjax.layers.checks import COMPUTE_DTYPES

log = logging.getLogger("fmjax")


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.search", "Find images by a text or an image.")
    add = parser.add_argument
    add("--model", required=True, help="workdir of a run, one of its checkpoints, a Hugging Face folder, or a hub id")
    add("--images", required=True, help="a folder of images, at any depth")
    add("--query", help="a text that says what is looked for")
    add("--query_image", help="a file with an image like those that are looked for")
    add("--top_k", type=cli.number(int, low=1), default=10, help="images to find")
    add("--output", help="FILE.png, a sheet of what was found")
    add("--index", help="folder that the index is kept in (default: one in the cache, for this folder and model)")
    add("--bad_images", default="skip", choices=BAD_IMAGES, help="leave out files that cannot be read, or stop at them")
    add("--neighbours", default="sklearn", choices=NEIGHBOURS, help="by whom the nearest are found; both are exact")
    add("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    add("--mesh", type=cli.mesh, help="split the model over all devices, such as fsdp:2,tensor:2")
    flags = parser.parse_args(argv)
    if (flags.query is None) == (flags.query_image is None):
        raise InputError("give --query=TEXT or --query_image=FILE: one of them, and not both")
    if flags.query is not None and not flags.query.strip():
        raise InputError("--query is empty; say what is looked for")
    if flags.output is not None:
        output = pathlib.Path(flags.output).expanduser()
        if output.suffix.lower() != ".png":
            raise InputError(f"--output={flags.output}: the sheet is a PNG; give FILE.png")
        if not output.parent.is_dir():
            raise InputError(f"--output={flags.output}: there is no folder {str(output.parent)!r}")
        flags.output = output
    return flags


def main(argv: list[str]) -> None:
    flags = parse(argv)
    cli.log_to_stderr()
    from fmjax.cache_folder import cache_dir, use_compilation_cache
    from fmjax.data.image_files import image_files
    from fmjax.inference import image_index
    from fmjax.inference.nearest import check_installed
    from fmjax.load import load

    use_compilation_cache()
    # What can be refused at once, before the model is loaded.
    image_files(pathlib.Path(flags.images).expanduser())
    check_installed(flags.neighbours)
    model = load(flags.model, dtype=flags.dtype, mesh=flags.mesh, progress=sys.stderr.isatty())
    if flags.query is not None:
        queries = image_index.query_vectors(model, texts=[flags.query])
    else:
        queries = image_index.query_vectors(model, images=[pathlib.Path(flags.query_image).expanduser()])
    progress = "indexing" if sys.stderr.isatty() else None
    directory = flags.index or image_index.default_directory(model, flags.images, cache_dir())
    try:
        index = image_index.index_images(
            model, flags.images, directory, bad_images=flags.bad_images, progress=progress
        )  # fmt: skip
    except KeyboardInterrupt:
        log.warning("interrupted; what was read is kept in %s, and the same command goes on from there", directory)
        raise
    (hits,) = index.search(queries, flags.top_k, flags.neighbours)
    _print(hits)
    if flags.output is not None:
        _write_sheet(flags, hits)
        print(f"sheet: {flags.output}")


def _print(hits) -> None:
    from fmjax.tasks.report import aligned

    rows = [(str(place), f"{hit.score:.4f}", hit.name) for place, hit in enumerate(hits, start=1)]
    print(aligned([("rank", "score", "image"), *rows]))


def _write_sheet(flags, hits) -> None:
    """The images found, each with its score and name; in front of them the one that was looked for."""
    from fmjax.data.codecs.contact_sheet import contact_sheet, write_sheet

    files, captions = [hit.path for hit in hits], [f"{hit.score:.3f} {hit.name}" for hit in hits]
    if flags.query_image is not None:
        files, captions = [pathlib.Path(flags.query_image).expanduser(), *files], ["looked for", *captions]
    write_sheet(contact_sheet(files, captions), flags.output)


if __name__ == "__main__":
    cli.leave(cli.run(main))
