"""Commands of two processes, with JAX between them."""

import re
import subprocess
import sys

import pytest

from fmjax import cpu
from fmjax.commands import cli
from tests.processes import REPOSITORY, free_port, outputs, without_gloo

COMMAND = """
import logging, pathlib, sys
from fmjax.commands import cli
from fmjax.errors import InputError, RunError
from fmjax.commands import launch

def main(argv):
    folder, does = pathlib.Path(argv.pop(0)), argv.pop(0)
    parser = cli.ArgumentParser("test", "")
    launch.add_flags(parser)
    flags = parser.parse_args(argv)
    cli.log_to_stderr()
    logging.getLogger("fmjax").setLevel(logging.INFO)
    with launch.together(flags):
        import jax
        from fmjax.parallel import hosts
        from fmjax.parallel.hosts import check_shared, from_first_process
        hosts.PIECE = 3  # several pieces
        mine = f"of {jax.process_index()}".encode()
        assert jax.device_count() == 4 and from_first_process(mine) == b"of 0"
        if does == "logs":
            logging.getLogger("fmjax").info("one thing")
            logging.getLogger("fmjax.a.b").warning("another")
            check_shared(folder)
        elif does == "checks":
            hosts.PATIENCE = 0.5
            check_shared(folder / str(jax.process_index()))
        elif jax.process_index() == 1:
            raise {"breaks": ZeroDivisionError, "gives up": RunError}[does]("it happened")
        else:
            from_first_process(mine)

cli.leave(cli.run(main))
"""


def run(folder, does):
    """(exit codes, outputs without Gloo's lines) of two processes."""
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    environment = {
        "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PATH": "/usr/bin:/bin"
    }  # fmt: skip
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, folder, does, *flags, f"--process_id={number}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    printed = outputs(hosts, timeout=120)
    return [host.returncode for host in hosts], [without_gloo(text).strip() for text in printed]


def test_the_first_process_logs_and_warnings_of_others_have_their_number(tmp_path):
    codes, (first, second) = run(tmp_path, "logs")
    assert codes == [0, 0]
    waiting, joined, *said = first.splitlines()
    assert re.fullmatch(r"waiting at 127\.0\.0\.1:\d+ for 2 processes, up to \d+ s", waiting)
    assert joined.startswith("2 processes") and said == ["one thing", "another"]
    assert second == "process 1: another"


def test_a_folder_that_only_one_host_sees_is_refused(tmp_path):
    (tmp_path / "0").mkdir()
    codes, (first, second) = run(tmp_path, "checks")
    assert codes == [2, 2]
    for text in (first, second):
        assert "is not the folder of that name on process 0's host" in text and "Traceback" not in text


@pytest.mark.parametrize("does", ["breaks", "gives up"])
def test_a_failure_of_one_ends_the_other_that_waits_for_it(tmp_path, does):
    codes, (first, second) = run(tmp_path, does)
    assert codes == [1, 1]
    assert "process 1 of 2 (host" in first and first.endswith("it happened") and "Traceback" not in first
    assert second.endswith("it happened") and ("Traceback" in second) == (does == "breaks")


def test_simulated_devices_of_every_command_come_to_collectives_in_one_order(monkeypatch):
    called = []
    monkeypatch.setattr(cpu, "order_collectives", lambda: called.append(True))
    assert cli.run(lambda argv: len(called)) == 1
