"""Convert: `python -m fmjax.convert --input=DIR_OR_HUB_ID --output=DIR --to=hf|fmjax [--dtype=float32]`.

Between the folders that fmjax writes and Hugging Face's. Nothing is at `--output` unless all of it is.
"""

import sys

from fmjax.commands import cli


def parse(argv: list[str]):
    parser = cli.ArgumentParser(
        "python -m fmjax.convert", "Convert a model between fmjax's and Hugging Face's folders."
    )
    parser.add_argument(
        "--input", required=True, help="workdir of a run, one of its checkpoints, a Hugging Face folder, or a hub id"
    )
    parser.add_argument("--output", required=True, help="folder to be made")
    parser.add_argument("--to", required=True, choices=("hf", "fmjax"), help="what to write")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; as stored where not given")
    parser.add_argument(
        "--sigma_rel", type=float, default=None,
        help="of a run with train.ema_sigma_rel: the width of the average of its parameters that is written",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    flags = parse(argv)
    cli.log_to_stderr()

    from fmjax.interop.exporter import check_new
    from fmjax.interop.loading import find_folder, stored_dtype
    from fmjax.load import load

    check_new(flags.output)
    folder = find_folder(flags.input)
    model = load(folder, dtype=flags.dtype or stored_dtype(folder), progress=True, sigma_rel=flags.sigma_rel)
    model.save(flags.output, format=flags.to, **({"progress": True} if flags.to == "hf" else {}))
    print(f"{model} is now in {flags.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
