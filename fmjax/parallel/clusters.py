"""Which processes compute together, as the launcher's environment or the command line tells.

`jax.distributed` has a detection of its own, but gives no way to ask whether there is a cluster without joining it, nor
where process 0 is before everybody has come, which is what it takes to name who has not. It also waits for processes
that do not exist in a shell of one task inside a larger Slurm allocation.
"""

import dataclasses
import os
import pathlib
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping

from fmjax.cpu import has_tpu
from fmjax.errors import InputError
from fmjax.parallel.local_devices import own_devices

FLAGS = ("coordinator", "num_processes", "process_id")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
FIRST_PORT, NUM_PORTS = 61440, 4096
"""Ports that Linux gives to no one by itself; one of them is chosen by the job's number."""
TPU_PORT, KUBERNETES_PORT = 8482, 55527


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process's place among several; what the launcher does not tell is None.

    Attributes:
      launcher: its name, for messages.
      coordinator: HOST:PORT, where process 0 can be reached.
      local_devices: numbers of this process's devices among the accelerators that it sees; None is all.
    """

    launcher: str
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    local_devices: tuple[int, ...] | None = None


def find(flags, environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that the flags `--coordinator --num_processes --process_id` or a launcher describe.

    Flags win over the launcher. None for a process that computes alone: nothing is found, there is one process only, or
    `--coordinator=none`.

    Raises InputError for flags that are incomplete or contradict each other, and for a launcher of several processes
    that does not tell all that is needed or whose variables are not what they should be.
    """
    given = {name: getattr(flags, name) for name in FLAGS if getattr(flags, name, None) is not None}
    if given.get("coordinator") == "none":
        if len(given) > 1:
            raise InputError(f"--coordinator=none is a process alone; leave out --{list(given)[1]}")
        return None
    found = None if len(given) == len(FLAGS) else detect(environment, count_known="num_processes" in given)
    if found is None and not given:
        return None
    cluster = dataclasses.replace(found or Cluster("the command line", None, None, None), **given)
    _check_number(cluster)
    if cluster.num_processes == 1 and cluster.process_id in (None, 0):
        return None
    missing = [f"--{name}" for name in FLAGS if getattr(cluster, name) is None]
    if missing:
        raise InputError(
            f"{cluster.launcher} starts several processes but does not tell {' and '.join(missing)}: give "
            "--coordinator=HOST:PORT (where process 0 runs, and a free port there), --num_processes=N and "
            "--process_id=I, or --coordinator=none for processes that have nothing to do with each other"
        )
    _check_address(cluster.coordinator)
    return cluster


def _check_number(cluster: Cluster) -> None:
    number, count = cluster.process_id, cluster.num_processes
    if number is not None and count is not None and not 0 <= number < count:
        raise InputError(f"--process_id={number} must be one of 0 .. {count - 1}, as --num_processes={count}")


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not _is_whole(port) or not 0 < int(port) < 65536:
        raise InputError(f"--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:1234, or none")


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A launcher's variable. Raises InputError where it is no whole number, or not set and without default."""
    text = environment.get(name, "").strip() or ("" if default is None else str(default))
    if not _is_whole(text):
        raise InputError(
            f"{name}={text!r} in the environment: the launcher that set the variables beside it should set a whole "
            "number there; use it to start the processes, or give --coordinator=none for a process that is alone"
        )
    return int(text)


def detect(environment: Mapping[str, str], count_known: bool = False) -> Cluster | None:
    """The cluster of the first launcher whose variables are set; None where none is, or it started one process."""
    # `mpirun` in a job of Slurm starts daemons as Slurm's tasks, whose variables its processes inherit.
    for launcher in (_open_mpi, _slurm, _kubernetes_tpu, _cloud_tpu):
        found = launcher(environment)
        if found is not None:
            return None if found.num_processes == 1 else found
    return _kubernetes(environment, count_known)


def _slurm(environment) -> Cluster | None:
    """A step that `srun` started. A batch script's own shell and an interactive one are steps of one task or none."""
    if any(name not in environment for name in SLURM):
        return None
    count = _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 1))
    number = _number(environment, "SLURM_JOB_ID") * 31 + _number(environment, "SLURM_STEP_ID", 0)
    coordinator = f"{first_node(environment['SLURM_STEP_NODELIST'])}:{FIRST_PORT + number % NUM_PORTS}"
    place = _tasks_here(environment), _number(environment, "SLURM_LOCALID")
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    local = own_devices(
        environment, "Slurm", *place, _gpus_per_task(environment), int(on_node) if _is_whole(on_node) else None
    )  # fmt: skip
    return Cluster("Slurm", coordinator, count, _number(environment, "SLURM_PROCID"), local)


def first_node(nodes: str) -> str:
    """The first host of a Slurm list: `node[003-007,12],other` -> `node003`."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _tasks_here(environment) -> int:
    """Tasks of the step on this node, from `4(x2),3` and the node's number."""
    counts = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        tasks, _, times = part.partition("(x")
        counts += [int(tasks)] * int(times.rstrip(")") or 1)
    return counts[min(_number(environment, "SLURM_NODEID", 0), len(counts) - 1)]


def _gpus_per_task(environment) -> int | None:
    """What `--gpus-per-task` asked of Slurm: `2`, or `a100:2`, or `a100:1,h100:1` for one of each."""
    text = environment.get("SLURM_GPUS_PER_TASK", "").strip()
    parts = [part.rpartition(":")[2] for part in text.split(",")]
    if text and not all(map(_is_whole, parts)):
        raise InputError(
            f"SLURM_GPUS_PER_TASK={text!r} in the environment: expected how many GPUs each task has, such as 2 or "
            "a100:2; start the processes with srun --gpus-per-task=N, or unset it"
        )
    return sum(map(int, parts)) if text else None


def _open_mpi(environment) -> Cluster | None:
    """Processes of `mpirun`. Open MPI 5 no longer tells where it was called: --coordinator has to."""
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    coordinator = None
    # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or 1314521088.0;tcp6://[fe80::b9b,2620::2]:43370
    match = re.match(r"(\d+)\.\d+;tcp6?://(\[?)([^,:\]]+|[^,\]]+)[,:\]]", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    if match:
        host = re.match(r"[^,\]]+", match.string[match.end(2) :])[0] if match[2] else match[3]
        port = FIRST_PORT + int(match[1]) // 4096 % NUM_PORTS  # Open MPI's job numbers are multiples of 4096
        coordinator = f"[{host}]:{port}" if match[2] else f"{host}:{port}"
    here = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    local = own_devices(environment, "Open MPI", here, _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", 0))
    count, process = _number(environment, "OMPI_COMM_WORLD_SIZE"), _number(environment, "OMPI_COMM_WORLD_RANK")
    return Cluster("Open MPI", coordinator, count, process, local)


def _tpu(launcher: str, workers: list[str], worker: int, slices: Mapping[str, str]) -> Cluster:
    """One or several slices of TPU hosts, each process a host, counted through slice by slice."""
    num_slices, own = _number(slices, "MEGASCALE_NUM_SLICES", 1), _number(slices, "MEGASCALE_SLICE_ID", 0)
    first = (slices.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]).split(":")[0]
    return Cluster(launcher, f"{first}:{TPU_PORT}", len(workers) * num_slices, own * len(workers) + worker)


def _kubernetes_tpu(environment) -> Cluster | None:
    """A pod with TPUs in Google's Kubernetes: the hosts of its slice are in the environment."""
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if not names or "TPU_WORKER_ID" not in environment or "KUBERNETES_SERVICE_HOST" not in environment:
        return None
    return _tpu("Cloud TPU in Kubernetes", names.split(","), _number(environment, "TPU_WORKER_ID"), environment)


def _cloud_tpu(environment) -> Cluster | None:
    """A TPU virtual machine: the hosts of its slice are in Google's metadata."""
    if not has_tpu() or "TPU_SKIP_MDS_QUERY" in environment or "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
        return None
    return cloud_tpu_slice(environment)


def cloud_tpu_slice(environment) -> Cluster | None:
    """The slice that the metadata server describes; None where there is no such server or it knows of no TPU."""
    number = _metadata(environment, "agent-worker-number")
    hosts = None if number is None else _metadata(environment, "worker-network-endpoints")
    if hosts is None:
        return None
    slices = dict(re.findall(r"^(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)", _metadata(environment, "tpu-env") or "", re.M))
    slices |= {name: value for name, value in environment.items() if name.startswith("MEGASCALE_")}
    # Each host is its name, or NAME:ID:IP.
    return _tpu("Cloud TPU", [host.split(":")[-1] for host in hosts.split(",")], int(number), slices)


def _metadata(environment, name: str) -> str | None:
    server = environment.get("GCE_METADATA_IP") or "metadata.google.internal"
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def _kubernetes(environment, count_known: bool) -> Cluster | None:
    """A pod of an Indexed Job or a JobSet: its name is JOB-INDEX, and that of process 0 JOB-0, in the same domain."""
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return None
    index = _number(environment, "JOB_COMPLETION_INDEX")
    name, _, domain = socket.getfqdn().partition(".")
    job = name.removesuffix(f"-{index}")
    count = None if count_known else _parallelism(job)
    if count == 1:
        return None
    coordinator = f"{job}-0.{domain}:{KUBERNETES_PORT}" if domain and job != name else None
    return Cluster("Kubernetes", coordinator, count, index)


def _parallelism(job: str) -> int | None:
    """How many pods a job runs, asked of Kubernetes; None without its Python package.

    Raises InputError where the pod's service account may not ask.
    """
    try:
        import kubernetes
    except ImportError:
        return None
    try:
        kubernetes.config.load_incluster_config()
        namespace = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
        return kubernetes.client.BatchV1Api().read_namespaced_job(job, namespace).spec.parallelism
    except Exception as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"Kubernetes does not tell how many pods the job {job!r} has ({reason}): give --num_processes, or let the "
            "pod's service account get jobs"
        ) from None
