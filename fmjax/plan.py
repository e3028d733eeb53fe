"""Plan: `python -m fmjax.plan --config=configs/NAME.py --topology=v5p:4x4x4 [--json=FILE] [--search]`.

Compiles the train step that `fmjax.train` would run, for devices that need not be there, and reports the memory of one
of them, FLOPs, traffic and the bound on speed that follows. With --search it tries other remat policies, meshes and
parts of the batch too; the best of those that fit has the lowest bound on a step's time, or the fewest FLOPs where no
bound is known. Exit codes: 0 it fits (or that is not known), 2 wrong usage, config or topology, 3 it does not fit.
"""

import json
import pathlib
import sys

from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.small_files import write_whole


def main(argv: list[str]) -> int:
    flags, overrides = parse(argv)
    cli.log_to_stderr()

    from fmjax import config as configs
    from fmjax.cache_folder import cache_dir
    from fmjax.planning import plan, report, search, topology

    if flags.json and not pathlib.Path(flags.json).absolute().parent.is_dir():
        raise InputError(f"--json={flags.json}: its folder is not there; make it first")
    config = configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    if flags.topology.startswith("cpu:"):
        import jax

        jax.config.update("jax_platforms", "cpu")  # an accelerator here stays free for whoever uses it
    devices = topology.devices_of(flags.topology)
    if not flags.search:
        found = plan.plan(config, devices, flags.topology, cache_dir=cache_dir())
        print(report.describe(found))
        result = found.to_json()
    else:
        rows = []
        tried = search.search(config, devices, flags.topology, cache_dir=cache_dir(), tries=flags.search)
        for what, one in tried:
            print(f"{what}: {report.verdict(one)}", file=sys.stderr)
            rows.append((what, one))
        chosen = search.best(rows)
        print(report.table(rows))
        found = chosen[1] if chosen else min((one for _, one in rows), key=lambda one: one.peak_bytes_per_device)
        print(f"\n{report.choice(*chosen)}\n\n{report.describe(found)}" if chosen else "\nnone of these fits")
        result = found.to_json() | {"changes": chosen and chosen[0], "tried": [[w, one.to_json()] for w, one in rows]}
    if flags.json:
        write_whole(pathlib.Path(flags.json), json.dumps(result, indent=1) + "\n")
    return 3 if found.fits is False else 0


def parse(argv: list[str]):
    """(flags, overrides of the config) of a command line. Raises InputError naming the flag that is wrong."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.ArgumentParser("python -m fmjax.plan", __doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="a Python file with get_config(), as for fmjax.train")
    parser.add_argument(
        "--topology", required=True,
        help="a TPU slice such as v5e:2x2, v5p:4x4x4 or v6e:16x16; cpu:N for N simulated devices; attached",
    )  # fmt: skip
    parser.add_argument("--json", help="write the plan to this file too")
    parser.add_argument(
        "--search", nargs="?", type=cli.number(int, low=1), const=12, default=0, metavar="TRIES",
        help="try other remat policies, meshes and parts of the batch, at most so many (12)",
    )  # fmt: skip
    return parser.parse_args(rest), overrides


if __name__ == "__main__":
    cli.leave(cli.run(main))
