"""Train: `python -m fmjax.train --config=configs/NAME.py --workdir=DIR [--config.a.b=value ...]`.

The same command on the same workdir resumes. `--config.a.b=value` replaces a key of the config; every key is checked
before anything slow begins. Exit codes: 0 done (or stopped by a signal after saving), 1 a loss that is not finite or a
full disk, 2 wrong usage, config or input.
"""

import time

STARTED = time.time()

import logging  # noqa: E402
import pathlib  # noqa: E402
import sys  # noqa: E402

from fmjax import cli, cpu  # noqa: E402


def parse(argv: list[str]) -> tuple[str, pathlib.Path, dict[str, str]]:
    """(config file, workdir, overrides) of a command line. Raises InputError naming the flag that is wrong."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.ArgumentParser("python -m fmjax.train", __doc__.split("\n")[0])
    parser.add_argument(
        "--config", required=True, help="a Python file with get_config(); FILE:ARGUMENT calls get_config(ARGUMENT)"
    )
    parser.add_argument("--workdir", required=True, help="folder of the run: config, checkpoints, metrics, samples")
    flags = parser.parse_args(rest)
    return flags.config, pathlib.Path(flags.workdir), overrides


def main(argv: list[str]) -> int:
    config_file, workdir, overrides = parse(argv)
    log = logging.getLogger("fmjax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.propagate = False

    cpu.keep_freed_memory()

    from fmjax import config as configs
    from fmjax.caches import cache_dir, use_compilation_cache

    config = configs.resolve(configs.apply_overrides(configs.load_config_file(config_file), overrides))
    use_compilation_cache()

    from fmjax.training.checkpoint import SaveError
    from fmjax.training.loop import NonFiniteError, train

    try:
        train(config, workdir, cache_dir=cache_dir(), started=STARTED)
    except (NonFiniteError, SaveError) as error:
        # Writes that a failed save abandons report themselves at exit, over and over, below the message.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.leave(cli.run(main))
