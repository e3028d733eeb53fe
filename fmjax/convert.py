"""Convert: `python -m fmjax.convert --input=DIR_OR_HUB_ID --output=DIR --to=hf|fmjax|peft [--dtype=float32]`.

Between the folders that fmjax writes and Hugging Face's. Low-rank adapters are merged into the kernels, those that a
run trained as those that `--adapter` names; `--to=peft` writes them alone. Nothing is at `--output` unless all of it
is.
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
    parser.add_argument("--to", required=True, choices=("hf", "fmjax", "peft"), help="what to write")
    parser.add_argument("--adapter", help="an adapter of the input: a run that trained it, or a folder that PEFT wrote")
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
    dtype = flags.dtype or stored_dtype(folder)
    model = load(folder, dtype=dtype, progress=True, sigma_rel=flags.sigma_rel, adapters=flags.adapter)
    if flags.to == "peft":
        from fmjax.interop import peft
        from fmjax.interop.adapters import read_adapter
        from fmjax.layers.weights import has_adapters

        adapter = read_adapter(folder, model) if model.adapter is None else model.adapters[model.adapter]
        is_own = model.adapter is None and has_adapters(model.params)
        peft.save(adapter, model.merged() if is_own else model, flags.output)
        print(f"{adapter.source} is now in {flags.output}")
        return
    model.save(flags.output, format=flags.to, **({"progress": True} if flags.to == "hf" else {}))
    print(f"{model} is now in {flags.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
