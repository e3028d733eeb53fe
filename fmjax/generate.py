"""Generate: `python -m fmjax.generate --model=DIR --prompt=TEXT [--max_new_tokens=64 --temperature=1.0 ...]`.

Prints the prompt and its continuation, as the tokens come.
"""

import itertools
import sys

from fmjax import cli


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.generate", "Continue a text, printing it as the tokens come.")
    parser.add_argument("--model", required=True, help="workdir of a run, one of its checkpoints, or a saved model")
    parser.add_argument("--prompt", required=True, help="text to continue; an empty one starts from BOS")
    parser.add_argument("--max_new_tokens", type=cli.number(int, low=1), default=64, help="tokens drawn at most")
    parser.add_argument(
        "--temperature", type=cli.number(float, low=0, high=1e6), default=1.0, help="divides the logits; 0 is greedy"
    )
    parser.add_argument("--top_k", type=cli.number(int, low=0), default=0, help="draw from the k likeliest; 0: all")
    parser.add_argument(
        "--top_p",
        type=cli.number(float, low=0, high=1, exclude_low=True),
        default=1.0,
        help="draw from the likeliest tokens that have this much probability together",
    )
    parser.add_argument("--seed", type=cli.number(int, low=0, high=2**32 - 1), default=0, help="of the random draws")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    flags = parse(argv)
    cli.log_to_stderr()

    from fmjax.caches import use_compilation_cache
    from fmjax.load import load

    use_compilation_cache()
    model = load(flags.model)
    pieces = model.stream(
        [flags.prompt],
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        seed=flags.seed,
    )
    # What cannot be generated from is refused here, before anything is printed.
    first = next(pieces, (0, ""))
    print(flags.prompt, end="")
    for _, piece in itertools.chain([first], pieces):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(cli.run(main))
