"""Plans of every shipped config that is meant for a TPU slice:

    pip install -e '.[plan]'
    python experiments/plans/run.py [--only=NAME,NAME]

Each is compiled by `python -m fmjax.plan`, one after another, by the real TPU compiler on a machine without a TPU.
Prints a table and writes results.json beside this file; those that are not in `--only` keep their last result.
"""

import argparse
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

PLANS = {
    "gpt2_124m": "v5e:2x2",
    "llama2_7b": "v5p:4x4x4",
    "llama2_70b": "v5p:8x8x8",
    "llama3_8b": "v5p:4x4x8",
    "llama3_405b": "v5p:8x16x16",
    "gpt3_175b": "v5p:8x16x16",
    "mistral_7b": "v6e:16x16",
}


def plan(name: str) -> dict:
    """The plan of a config, which need not fit."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "plan.json"
        flags = [f"--config=configs/{name}.py", f"--topology={PLANS[name]}", f"--json={out}"]
        done = subprocess.run([sys.executable, "-m", "fmjax.plan", *flags], cwd=HERE.parents[1])
        if done.returncode not in (0, 3):
            sys.exit(f"the plan of {name} failed with exit code {done.returncode}")
        return json.loads(out.read_text())


def row(name: str, found: dict) -> str:
    """A line of the table in the page."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
    memory = f"{found['peak_bytes_per_device'] / 2**30:.1f} of {found['hbm_bytes_per_device'] / 2**30:.0f}"
    parts = [
        name, found["topology"], mesh, f"{found['tokens_per_step']:,}", memory, "yes" if found["fits"] else "no",
        f"{found['useful_flops']:.1%}", f"{found['step_seconds_bound']:.2f}", f"{found['mfu_bound']:.1%}",
        found["limited_by"], f"{found['compile_seconds']:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(parts)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(PLANS), help="names of configs, separated by commas")
    names = parser.parse_args().only.split(",")
    unknown = [name for name in names if name not in PLANS]
    if unknown:
        sys.exit(f"{unknown[0]!r} is none of {', '.join(PLANS)}")
    path = HERE / "results.json"
    plans = json.loads(path.read_text())["plans"] if path.exists() else {}
    for name in names:
        setting = runs.setting() | {"libtpu": importlib.metadata.version("libtpu")}
        plans[name] = plan(name) | {"setting": setting}
        path.write_text(json.dumps({"plans": plans}, indent=1) + "\n")
    header = "config topology mesh tokens/step GiB/chip fits useful step-bound,s MFU-bound limited compiled,s".split()
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name in PLANS:
        if name in plans:
            print(row(name, plans[name]))


if __name__ == "__main__":
    main()
