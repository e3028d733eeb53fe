"""What the studies of this folder share: training runs as commands, their metrics, and plots of curves."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


def keyed(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Makes a study's folder, and keeps there what its figures depend on.

    Raises SystemExit for a folder with figures of other settings, or of settings that nothing tells; `short`, where a
    study has its short form, is not looked at.
    """
    from fmjax.small_files import write_whole

    file, settings = folder / "settings.json", json.loads(json.dumps(settings))
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        if other := sorted(one.name for one in folder.iterdir() if one.name[0] != "." and one.name != "short"):
            raise SystemExit(f"{folder} has {', '.join(other[:3])} and no settings.json; give a --workdir of its own")
        write_whole(file, json.dumps(settings, indent=1))
    kept = json.loads(file.read_text())
    if kept != settings:
        names = sorted(name for name in {*kept, *settings} if kept.get(name) != settings.get(name))
        told = "; ".join(f"{name} was {kept.get(name)}, is {settings.get(name)}" for name in names)
        raise SystemExit(f"{folder} has figures of other settings ({told}); give another --workdir, or those settings")


def digest(*files: pathlib.Path) -> str:
    """Twelve characters that say what files contain, for `keyed`."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Kept:
    """What a study measured, in `measured.json` of its folder, which `keyed` ties to its settings."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        keyed(folder, settings)
        self._file = folder / "measured.json"
        self._known = json.loads(self._file.read_text()) if self._file.exists() else {}

    def once(self, name: str, make: Callable[[], Any], told: bool = True) -> Any:
        """What `make()` gives, as JSON has it, kept for the next time; so are the seconds it took. `told` prints it."""
        from fmjax.small_files import write_whole

        if name not in self._known:
            begin = time.time()
            value = json.loads(json.dumps(make()))
            self._known[name] = {"value": value, "seconds": round(time.time() - begin, 1)}
            print(f"{name}{f': {value}' if told else ''} ({time.time() - begin:.0f} s)", flush=True)
            write_whole(self._file, json.dumps(self._known, indent=1))
        return self._known[name]["value"]

    def seconds(self) -> float:
        """What all that is kept took."""
        return sum(one["seconds"] for one in self._known.values())


def train(config: str, workdir: pathlib.Path, **overrides) -> list[dict]:
    """Runs `python -m fmjax.train` (a finished run is not run again) and returns the lines of its metrics.

    Args:
      config: a file of `configs/`, or one's whole path, with `:SIZE` where it has sizes.
      overrides: config keys with a double underscore for each dot, `train__steps=100`.
    """
    subprocess.run(_training(config, workdir, overrides), cwd=ROOT, check=True)
    return _metrics(workdir)


def train_measured(config: str, workdir: pathlib.Path, **overrides) -> tuple[list[dict], int]:
    """As `train`; (the metrics, bytes of memory that the process had at most, its loading and compiling included).

    A run that goes on where it was cut is measured from there.
    """
    file = workdir / "peak_bytes.json"
    if not file.exists():
        command = _training(config, workdir, overrides)
        process = subprocess.Popen(command, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
        file.write_text(json.dumps(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)))
    return _metrics(workdir), json.loads(file.read_text())


def _training(config: str, workdir: pathlib.Path, overrides: Mapping) -> list[str]:
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    command = ["fmjax.train", f"--config={ROOT / 'configs' / config}", f"--workdir={workdir.absolute()}", *flags]
    return [sys.executable, "-m", *command]


def train_here(config: str, workdir: pathlib.Path, **overrides) -> list[dict]:
    """As `train`, in this process, for many short runs."""
    from fmjax import config as configs

    flags = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    raw = configs.load_config_file(str(ROOT / "configs" / config))
    return train_config(configs.resolve(configs.apply_overrides(raw, flags)), workdir)


def train_config(config, workdir: pathlib.Path) -> list[dict]:
    """As `train_here`, of a config that `fmjax.config.resolve` gave."""
    from fmjax.cache_folder import cache_dir, use_compilation_cache
    from fmjax.training import loop

    use_compilation_cache()
    found = loop.train(config, workdir, cache_dir=cache_dir())
    if found.get("stopped"):
        raise SystemExit(f"{workdir} was stopped; the same command goes on")
    return _metrics(workdir)


def _metrics(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def found(model: str) -> str:
    """A path from where the command was given, for those that run elsewhere; hub ids stay."""
    path = pathlib.Path(model).expanduser()
    return str(path.absolute()) if path.exists() else model


def curve(metrics: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric."""
    rows = [(line["step"], line[name]) for line in metrics if name in line]
    return [step for step, _ in rows], [value for _, value in rows]


def last(metrics: list[dict], name: str) -> float:
    """The last value of a metric."""
    return curve(metrics, name)[1][-1]


def setting() -> dict:
    """The machine and the versions that a result was made with."""
    packages = ("jax", "flax", "optax")
    return {
        "machine": f"{platform.machine()}, {len_cores()} cores",
        "processor": processor(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def len_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """Its name as Linux knows it."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def memory(field: str) -> int:
    """Bytes: "VmRSS" now, "VmHWM" at most since `reset_peak`; pages mapped from files are included."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


class Measured:
    """What a study has measured, in a file, by what it was measured with: a command that was cut goes on, and what was
    measured with other settings, code, processor or versions is measured anew."""

    def __init__(self, file: pathlib.Path):
        from fmjax.code_digest import own_digest

        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._parts = file, json.loads(file.read_text()) if file.exists() else {}
        around = {name: value for name, value in setting().items() if name != "date"}
        self._around = around | {"code": own_digest()}

    def once(self, settings: Mapping, measure: Callable):
        """What `measure()` gives, which JSON can hold."""
        key = json.dumps({**settings, **self._around}, sort_keys=True)
        if key not in self._parts:
            from fmjax.small_files import write_whole

            self._parts[key] = measure()
            write_whole(self._file, json.dumps(self._parts, indent=1))
        return self._parts[key]


def save(folder: pathlib.Path, results: Mapping) -> None:
    """Writes results.json beside the study's page."""
    (folder / "results.json").write_text(json.dumps({**results, "setting": setting()}, indent=2) + "\n")


def plot(
    file: pathlib.Path, curves: Mapping[str, tuple], ylabel: str, lines: Mapping[str, float] | None = None, **axis
):
    """Curves by name over steps, with horizontal lines for what they are compared with; `axis` sets what is else."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    many = len(curves) > 6  # whose names would lie on the curves
    figure, axes = pyplot.subplots(figsize=(8 if many else 6, 4))
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name)
    for number, (name, value) in enumerate((lines or {}).items()):
        axes.axhline(value, color="gray", linestyle="--", linewidth=1)
        side = "bottom" if number % 2 == 0 else "top"  # of two close lines one is named above, one below
        axes.annotate(name, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va=side, color="gray")
    axes.set(**{"xlabel": "step", "ylabel": ylabel, **axis})
    axes.grid(alpha=0.3)
    axes.legend(**(dict(bbox_to_anchor=(1, 1), loc="upper left", fontsize=8) if many else {}))
    figure.tight_layout()
    figure.savefig(file, dpi=150)
