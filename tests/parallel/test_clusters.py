"""What launchers tell of their processes: the variables that their manuals name."""

import argparse
import http.server
import socket
import sys
import threading
import types

import pytest

from fmjax import cpu
from fmjax.commands import cli, launch
from fmjax.errors import InputError
from fmjax.parallel import clusters, local_devices
from fmjax.parallel.clusters import Cluster, cloud_tpu_slice, find, first_node

SLURM = {
    "SLURM_JOB_ID": "70000", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[03-05,9],login1", "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "4(x3),2(x2)", "SLURM_PROCID": "7", "SLURM_NODEID": "1",
    "SLURM_LOCALID": "3",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
TPU_POD = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1", "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "job-0.set,job-1.set",
}  # fmt: skip
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "first-0.set:8080"}


def cuda(count):
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """A host with JAX's plugin for GPUs, and none of them; a call puts as many there as it says."""
    monkeypatch.setattr(cpu, "DEVICES", tmp_path)
    (tmp_path / "nvidiactl").touch()
    install(monkeypatch, "jax_plugins")
    return lambda count: [(tmp_path / f"nvidia{number}").touch() for number in range(count)]


def install(monkeypatch, *packages):
    found = types.SimpleNamespace(find_spec=lambda name: name if name in packages else None)
    monkeypatch.setattr(local_devices, "importlib", types.SimpleNamespace(util=found))


def flags(*arguments):
    parser = cli.ArgumentParser("test", "")
    launch.add_flags(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (SLURM, Cluster("Slurm", f"gpu03:{61440 + 70000 * 31 % 4096}", 16, 7, (3,))),
        # One task on each node has all of its accelerators, and so has one that Slurm dealt one accelerator out to.
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x16)"}, Cluster("Slurm", "gpu03:64656", 16, 7)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "2"}, Cluster("Slurm", "gpu03:64656", 16, 7)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Cluster("Slurm", "gpu03:64656", 16, 7, (3,))),
        (SLURM | {"SLURM_NODEID": "3", "SLURM_LOCALID": "1"} | cuda(2), Cluster("Slurm", "gpu03:64656", 16, 7, (1,))),
        # A shell inside an allocation of 16 tasks, and the batch script's own.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({name: value for name, value in SLURM.items() if "STEP" not in name}, None),
        (OPEN_MPI, Cluster("Open MPI", "10.96.0.1:62624", 4, 3, (1,))),
        (SLURM | OPEN_MPI, Cluster("Open MPI", "10.96.0.1:62624", 4, 3, (1,))),
        (
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"},
            Cluster("Open MPI", "[fe80::b9b:ac5d]:62880", 4, 3, (1,)),
        ),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (TPU_POD, Cluster("Cloud TPU in Kubernetes", "job-0.set:8482", 2, 1)),
        (TPU_POD | SLICES, Cluster("Cloud TPU in Kubernetes", "first-0.set:8482", 4, 3)),
        (TPU_POD | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_launchers_are_found_by_their_variables(environment, expected):
    assert find(flags(), environment) == expected


PER_NODE = {"SLURM_STEP_TASKS_PER_NODE": "1(x16)", "SLURM_LOCALID": "0"}
"""One task on each node; SLURM has four on this one, of which this is number 3, OPEN_MPI two, this number 1."""


@pytest.mark.parametrize(
    "environment, own",
    [
        # One process on its host has all that it sees.
        (SLURM | PER_NODE | cuda(8), None),
        (SLURM | PER_NODE | cuda(8) | {"SLURM_GPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "8"}, None),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"} | cuda(8), None),
        # As many as there are GPUs that all see have one each.
        (SLURM | cuda(4) | {"SLURM_GPUS_ON_NODE": "4"}, (3,)),
        (OPEN_MPI | {"ROCR_VISIBLE_DEVICES": "4,6"}, (1,)),
        (OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-1b2c3d4e,-1,GPU-0"}, (1,)),
        # Slurm dealt out what each was to have, or was told not to (--gpu-bind=none) and shows all of them to each.
        (SLURM | cuda(2) | {"SLURM_GPUS_PER_TASK": "2", "SLURM_GPUS_ON_NODE": "8"}, None),
        (SLURM | cuda(4) | {"SLURM_GPUS_PER_TASK": "a100:4"}, None),
        (SLURM | cuda(1) | {"SLURM_GPUS_PER_TASK": "1"}, None),
        (SLURM | cuda(8) | {"SLURM_GPUS_PER_TASK": "2", "SLURM_GPUS_ON_NODE": "8"}, (6, 7)),
        (SLURM | cuda(12) | {"SLURM_GPUS_PER_TASK": "a100:1,h100:2"}, (9, 10, 11)),
        # Somebody gave it one.
        (OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "5"}, None),
        # The user says which, or that there are none.
        (OPEN_MPI | cuda(8) | {"JAX_LOCAL_DEVICE_IDS": "4, 5,6,7"}, (4, 5, 6, 7)),
        (SLURM | PER_NODE | cuda(8) | {"JAX_LOCAL_DEVICE_IDS": "0"}, (0,)),
        (SLURM | cuda(8) | {"JAX_PLATFORMS": "cpu"}, None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": ""}, None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        (SLURM | cuda(4) | {"JAX_PLATFORMS": "cuda,cpu"}, (3,)),
    ],
)
def test_the_gpus_of_a_host_are_each_one_processes_own(environment, own, host):
    host(8)
    assert find(flags(), environment).local_devices == own


@pytest.mark.parametrize(
    "environment, message",
    [
        (SLURM | cuda(8), "Slurm runs 4 processes .* sees 8 GPUs .CUDA_VISIBLE_DEVICES.: .* JAX_LOCAL_DEVICE_IDS"),
        (SLURM | cuda(2), "Slurm runs 4 processes on this host, and this one sees 2 GPUs "),
        (OPEN_MPI | cuda(8), "Open MPI runs 2 processes on this host, and this one sees 8 GPUs"),
        (SLURM | cuda(6) | {"SLURM_GPUS_PER_TASK": "2"}, "sees 6 GPUs .* where each asked for 2"),
        # Four each, that nobody says were dealt out, look like one each of four.
        (SLURM | cuda(4) | {"SLURM_GPUS_ON_NODE": "16"}, "sees 4 GPUs .*, of 16 that all have together: which"),
        (SLURM | {"SLURM_GPUS_PER_TASK": "many"}, "SLURM_GPUS_PER_TASK='many' in the environment: expected how many"),
        (OPEN_MPI | {"JAX_LOCAL_DEVICE_IDS": "0;1"}, "JAX_LOCAL_DEVICE_IDS='0;1' in the environment: expected numbers"),
    ],
)
def test_gpus_that_could_be_several_processes_own_are_refused(environment, message):
    with pytest.raises(InputError, match=message):
        find(flags(), environment)
    assert find(flags("--coordinator=none"), environment) is None


def test_gpus_that_no_variable_tells_of_are_counted(host, monkeypatch):
    assert find(flags(), OPEN_MPI).local_devices == (1,)  # not known
    host(1)
    with pytest.raises(InputError, match="2 processes on this host, and this one sees 1 GPU .*/nvidia"):
        find(flags(), OPEN_MPI)
    host(2)
    assert find(flags(), OPEN_MPI).local_devices == (1,)
    host(8)
    with pytest.raises(InputError, match="this one sees 8 GPUs .*/nvidia"):
        find(flags(), OPEN_MPI)
    install(monkeypatch)
    assert find(flags(), OPEN_MPI).local_devices == (1,)  # of which JAX uses none


def test_the_first_node_of_slurms_lists():
    for nodes, first in {
        "a": "a", "a,b": "a", "n[1-3]": "n1", "n[007,9]": "n007", "r[1-2]n[3-4],x": "r1n3", "n[1-2]-ib,m": "n1-ib",
    }.items():  # fmt: skip
        assert first_node(nodes) == first


def test_flags_come_before_what_is_found():
    given = flags("--coordinator=10.0.0.1:1234", "--num_processes=3", "--process_id=2")
    assert find(given, SLURM) == Cluster("the command line", "10.0.0.1:1234", 3, 2)
    # Open MPI 5 does not tell where process 0 is; the rest it does.
    environment = {name: value for name, value in OPEN_MPI.items() if "uri" not in name}
    assert find(flags("--coordinator=node1:1234"), environment) == Cluster("Open MPI", "node1:1234", 4, 3, (1,))
    with pytest.raises(InputError, match="Open MPI starts several processes but does not tell --coordinator: give"):
        find(flags(), environment)
    assert find(flags("--coordinator=none"), SLURM) is None
    assert find(flags("--coordinator=10.0.0.1:1234", "--num_processes=1", "--process_id=0"), {}) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--coordinator=a:1"], "does not tell --num_processes and --process_id"),
        (["--num_processes=2"], "does not tell --coordinator and --process_id"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], r"--process_id=2 must be one of 0 \.\. 1"),
        (["--coordinator=a", "--num_processes=2", "--process_id=1"], "--coordinator=a must be HOST:PORT"),
        (["--num_processes=1", "--process_id=3"], r"--process_id=3 must be one of 0 \.\. 0"),
        (["--coordinator=a:٣٤", "--num_processes=2", "--process_id=1"], "--coordinator=a:٣٤ must be HOST:PORT"),
        (["--coordinator=a:0", "--num_processes=2", "--process_id=1"], "--coordinator=a:0 must be HOST:PORT"),
        (["--coordinator=none", "--process_id=1"], "leave out --process_id"),
    ],
)
def test_flags_that_do_not_tell_all_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        find(flags(*arguments), {})


@pytest.mark.parametrize("flag", launch.TIMEOUTS)
@pytest.mark.parametrize("value", ["inf", "nan", "1e7", "-1", "0"])
def test_times_that_cannot_be_waited_for_are_refused(flag, value):
    if (flag, value) == ("stall_timeout", "0"):  # no limit
        assert flags("--stall_timeout=0").stall_timeout == 0
        return
    low = "at least" if flag == "stall_timeout" else "above"
    with pytest.raises(InputError, match=f"--{flag}: expected a number {low} 0 and at most 604800, got '{value}'"):
        flags(f"--{flag}={value}")


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK=''"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE='many'"),
        (SLURM | {"SLURM_PROCID": ""}, "SLURM_PROCID=''"),
        (TPU_POD | {"TPU_WORKER_ID": "x"}, "TPU_WORKER_ID='x'"),
    ],
)
def test_a_launchers_variables_that_are_incomplete_are_refused(environment, message):
    with pytest.raises(InputError, match=f"{message} in the environment: .* should set a whole number"):
        find(flags(), environment)


@pytest.fixture
def metadata():
    """A metadata server; its attributes may be set."""
    attributes = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition("/")[2])
            self.send_response(404 if value is None or self.headers["Metadata-Flavor"] != "Google" else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    attributes["environment"] = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
    yield attributes
    server.shutdown()


def test_the_slice_of_a_tpu_machine_is_in_its_metadata(metadata):
    environment = metadata.pop("environment")
    assert cloud_tpu_slice(environment) is None
    metadata |= {"agent-worker-number": "1", "worker-network-endpoints": "unknown:1:10.0.0.5,unknown:2:10.0.0.6"}
    assert cloud_tpu_slice(environment) == Cluster("Cloud TPU", "10.0.0.5:8482", 2, 1)
    metadata["worker-network-endpoints"] = "host-0,host-1"
    metadata["tpu-env"] = (
        "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\nMEGASCALE_COORDINATOR_ADDRESS: 'a:8080'\n"
    )
    assert cloud_tpu_slice(environment) == Cluster("Cloud TPU", "a:8482", 6, 5)


def test_pods_of_a_job_find_each_other(monkeypatch):
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
    monkeypatch.setattr(socket, "getfqdn", lambda: "run-hosts-0-3.run.default.svc.cluster.local")
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    address = "run-hosts-0-0.run.default.svc.cluster.local:55527"
    assert find(flags("--num_processes=8"), environment) == Cluster("Kubernetes", address, 8, 3)
    with pytest.raises(InputError, match="Kubernetes starts several processes but does not tell --num_processes"):
        find(flags(), environment)

    asked = []

    def read(job, namespace):
        asked.append((job, namespace))
        return argparse.Namespace(spec=argparse.Namespace(parallelism=4))

    package = types.SimpleNamespace(
        config=types.SimpleNamespace(load_incluster_config=lambda: None),
        client=types.SimpleNamespace(BatchV1Api=lambda: types.SimpleNamespace(read_namespaced_job=read)),
    )
    monkeypatch.setitem(sys.modules, "kubernetes", package)
    monkeypatch.setattr(clusters.pathlib.Path, "read_text", lambda _: "default\n")
    assert find(flags(), environment) == Cluster("Kubernetes", address, 4, 3)
    assert asked == [("run-hosts-0", "default")]
    monkeypatch.setattr(socket, "getfqdn", lambda: "run-3")
    with pytest.raises(InputError, match="does not tell --coordinator"):
        find(flags(), environment)
