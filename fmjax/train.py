"""Train: `python -m fmjax.train --config=configs/NAME.py --workdir=DIR [--config.a.b=value ...]`.

The same command on the same workdir resumes. `--config.a.b=value` replaces a key of the config; every key is checked
before anything slow begins; `--config.help` prints them with their values, types, defaults and meanings. Exit codes: 0
done (or stopped by a signal after saving), 1 a loss that is not finite or a full disk or another process that is
missing, 2 wrong usage, config or input.

Several processes, each with its own devices, train as one: see `fmjax.commands.launch`.
"""

import time

STARTED = time.time()

import logging  # noqa: E402
import pathlib  # noqa: E402
import sys  # noqa: E402

from fmjax import cpu  # noqa: E402
from fmjax.commands import cli, launch  # noqa: E402
from fmjax.errors import RunError  # noqa: E402


def parse(argv: list[str]):
    """(flags, overrides of the config) of a command line. Raises InputError naming the flag that is wrong."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.ArgumentParser("python -m fmjax.train", __doc__.split("\n")[0])
    parser.add_argument(
        "--config", required=True, help="a Python file with get_config(); FILE:ARGUMENT calls get_config(ARGUMENT)"
    )
    parser.add_argument(
        cli.CONFIG_HELP, dest="config_help", action="store_true", help="print the config's keys, explained, and stop"
    )
    parser.add_argument("--workdir", help="folder of the run: config, checkpoints, metrics, samples")
    launch.add_flags(parser)
    flags = parser.parse_args(rest)
    if flags.workdir is None and not flags.config_help:
        parser.error("the following arguments are required: --workdir")
    return flags, overrides


def explained(path: str, overrides: dict[str, str]) -> str:
    """Every key of a config file, with these values replaced: its value, type, default and meaning."""
    from fmjax import config as configs
    from fmjax.commands.config_help import describe

    return describe(configs.apply_overrides(configs.load_config_file(path), overrides))


def main(argv: list[str]) -> None:
    flags, overrides = parse(argv)
    if flags.config_help:
        print(explained(flags.config, overrides))
        return
    log = logging.getLogger("fmjax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.propagate = False

    cpu.set_up_training()

    from fmjax import config as configs
    from fmjax.cache_folder import cache_dir, use_compilation_cache
    from fmjax.config_values import json_copy

    config = configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    use_compilation_cache()

    with launch.together(flags, {"config": json_copy(config.to_dict())}, saves_on_signal=True):
        from fmjax.training.loop import train

        try:
            train(config, pathlib.Path(flags.workdir), cache_dir=cache_dir(), started=STARTED)
        except RunError:
            # Writes that a failed save abandons report themselves at exit, over and over, below the message.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise


if __name__ == "__main__":
    cli.leave(cli.run(main))
