"""A command of several processes: joined before JAX starts, watched while it runs, ended together."""

import argparse
import contextlib
import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from fmjax.commands import cli
from fmjax.errors import InputError, RunError
from fmjax.parallel.clusters import FLAGS, Cluster, find

TIMEOUTS = ("initialization_timeout", "heartbeat_timeout", "barrier_timeout", "stall_timeout")
NAMES = (*FLAGS, *TIMEOUTS)
"""Of the flags that `add_flags` adds."""
MAX_TIMEOUT = 7 * 24 * 3600
"""Seconds: a week, well under the 24 days that a socket can be told to wait."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that several processes can run together."""
    group = parser.add_argument_group(
        "several processes", "Slurm, Open MPI, Cloud TPU and Kubernetes are found by themselves; for anything else:"
    )
    add, seconds = group.add_argument, cli.number(float, low=0, high=MAX_TIMEOUT, exclude_low=True)
    add("--coordinator", default=None, help="HOST:PORT of process 0, any free port; none: this process is alone")
    add("--num_processes", type=cli.number(int, low=1), default=None, help="how many run this command")
    add("--process_id", type=cli.number(int, low=0), default=None, help="which of them this is, from 0")
    add("--initialization_timeout", type=seconds, default=300.0, help="seconds to wait for all of them to start")
    add("--heartbeat_timeout", type=seconds, default=30.0, help="seconds of silence after which one counts as dead")
    add("--barrier_timeout", type=seconds, default=1800.0, help="seconds that one may keep the others waiting")
    add(
        "--stall_timeout", type=cli.number(float, low=0, high=MAX_TIMEOUT), default=1800.0,
        help="seconds that all may stay at one step, save, batch or part of a generation; 0: no limit",
    )  # fmt: skip


@contextlib.contextmanager
def together(flags, same: Mapping[str, Any] | None = None, saves_on_signal: bool = False) -> Iterator[None]:
    """Joins the processes that run this command, where there are several; to be entered before JAX computes.

    Inside, `jax.devices()` are those of all processes, process 0 alone logs what is below a warning, and warnings of
    the others begin with their number. What ends one process, an error or its death, ends all: each prints what it was
    and where, and leaves with exit code 1, or 2 for an InputError.

    Args:
      flags: parsed flags, those of `add_flags` among them.
      same: what must be equal in all processes: JSON-able, dicts of dicts.
      saves_on_signal: SIGTERM in one process is left to `multihost_utils.reached_preemption_sync_point`, which the
        command must call; else it ends the processes.

    Raises InputError as `clusters.find` does, and `roll_call.MissingProcess` where one does not come in time.
    """
    cluster = find(flags)
    if cluster is None:
        yield
        return
    watch = _join(cluster, flags, same or {}, saves_on_signal)
    from fmjax.parallel.watch import watching

    try:
        with watching(watch):
            yield
            watch.leave()
    except InputError as error:
        watch.fail(str(error), 2)
    except RunError as error:
        watch.fail(str(error), 1)
    except SystemExit as error:
        watch.fail("left early", error.code if isinstance(error.code, int) else 1)
    except KeyboardInterrupt:
        watch.fail("interrupted", 130)
    except BaseException as error:
        watch.fail(f"{type(error).__name__}: {error}".splitlines()[0], 1, details=traceback.format_exc())


def _join(cluster: Cluster, flags, same: Mapping[str, Any], saves_on_signal: bool):
    import jax

    import fmjax
    from fmjax.parallel.watch import Watch

    log = logging.getLogger("fmjax")
    if cluster.process_id:
        _mark_log(cluster.process_id)
    waits = (cluster.coordinator, cluster.num_processes, flags.initialization_timeout)
    log.info("waiting at %s for %d processes, up to %.0f s", *waits)
    same = {"version": {"fmjax": fmjax.__version__, "jax": jax.__version__}, **same}
    watch = Watch(cluster, same, **{name: getattr(flags, name) for name in TIMEOUTS})
    jax.config.update("jax_enable_preemption_service", saves_on_signal)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(flags.initialization_timeout) + 1,
        # The watch is to be first: it names the host.
        heartbeat_timeout_seconds=2 * int(flags.heartbeat_timeout) + 10,
    )
    log.info(
        "%d processes (%s), process 0 on host %s", cluster.num_processes, cluster.launcher, watch.hosts[0]
    )
    return watch


def _mark_log(process: int) -> None:
    """Only warnings of this process are shown, and they begin with its number."""
    log = logging.getLogger("fmjax")
    log.setLevel(max(log.level, logging.WARNING))
    for handler in [*logging.getLogger().handlers, *log.handlers]:
        handler.setFormatter(logging.Formatter(f"process {process}: %(message)s"))
