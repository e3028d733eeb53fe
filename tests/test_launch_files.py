"""The launch files: scripts that the shell understands, commands that the command understands, counts that agree."""

import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from fmjax import config as configs
from fmjax import train
from fmjax.parallel import clusters

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "launch"


def check(argv, monkeypatch):
    """Parses a command's flags and resolves its config; returns the flags."""
    monkeypatch.chdir(ROOT)
    flags, overrides = train.parse(argv)
    configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    return flags


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell(path, monkeypatch):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    variables = dict(re.findall(r"^(\w+)=(?:\$\{\w+:-)?([^}\s]+)", text, re.MULTILINE))
    (command,) = re.findall(r"-m fmjax\.train ((?:[^\n]*\\\n)*[^\n]*)", text)
    if "ssh" in text:  # the end of what is quoted for the other side
        command = command.replace("\\\n", " ").rstrip('"')
    check(shlex.split(re.sub(r"\$(\w+)", lambda match: variables[match[1]], command)), monkeypatch)


def test_the_slice_script_runs_one_command_on_every_host(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    gcloud.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TPU": "mine", "ZONE": "here", "RUN": "run"}
    script = FOLDER / "tpu_vm.sh"
    verbs = {"setup": "pip install", "train": "--workdir='/mnt/fmjax/runs/run'", "stop": "pkill -TERM"}
    before = "compute\ntpus\ntpu-vm\nssh\nmine\n--zone=here\n--worker=all\n--command="
    for verb, does in verbs.items():
        shown = subprocess.run([script, verb], env=environment, capture_output=True, text=True, check=True).stdout
        assert shown.startswith(before) and does in shown
        subprocess.run(["bash", "-n", "-c", shown.removeprefix(before)], check=True)
    assert subprocess.run([script], env=environment, capture_output=True).returncode == 2


@pytest.mark.parametrize("name", ["jobset_gpu.yaml", "jobset_tpu.yaml"])
def test_job_sets_start_as_many_processes_as_they_say(name, monkeypatch):
    (job_set,) = yaml.safe_load_all((FOLDER / name).read_text())
    assert (job_set["kind"], job_set["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    (job,) = job_set["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "fmjax.train"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    flags = check(container["args"], monkeypatch)
    hosts = spec["parallelism"]
    assert spec["completions"] == hosts
    if "gpu" in name:
        environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
        domain = f"{job_set['metadata']['name']}.default.svc.cluster.local"
        prefix = f"{job_set['metadata']['name']}-{job['name']}-0"
        monkeypatch.setattr(clusters.socket, "getfqdn", lambda: f"{prefix}-2.{domain}")
        found = clusters.find(flags, environment)
        assert found == clusters.Cluster("Kubernetes", f"{prefix}-0.{domain}:55527", hosts, 2)
    else:
        chips = 1
        for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
            chips *= int(side)
        assert hosts * container["resources"]["limits"]["google.com/tpu"] == chips
