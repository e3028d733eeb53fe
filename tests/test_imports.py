"""The house holds together: no circle of imports, lazy ones included, and every import goes down."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "fmjax"
# From the top. A file belongs to the floor of the longest name that it begins with.
FLOORS = (
    "train evaluate generate plan convert search agent compress.__main__",
    "commands",
    "training planning",
    "agents",
    "tasks compress",
    "training.program training.other_models training.state training.step training.gradients training.trainable "
    "training.optimizer training.layer_decay training.schedule training.turns",
    "load",
    "inference interop",
    "assemble checkpoint_files",
    "config",
    "models objectives rewards data adapt training.settings training.__init__",
    "layers diffusion",
    "parallel",
    "config_fields config_values registry cache_folder code_digest cpu errors file_lock gguf_file hub native "
    "power_average small_files __init__",
)


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: pathlib.Path, known) -> set[str]:
    """Modules of fmjax that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fmjax":
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {name.removeprefix("fmjax.") for name in found if name.startswith("fmjax.")}
    if "fmjax" in found:
        names.add("__init__")
    packages = {name.removesuffix(".__init__"): name for name in known if name.endswith(".__init__")}
    taken = {packages.get(name, name) for name in names} & known
    # `from fmjax.data.tokenizers import chat` takes the file; the face of its folder only hands names on.
    inner = {name for name in taken if name.endswith(".__init__")}
    used = {name for name in inner if any(n.rpartition(".")[0] == name[:-9] and n not in known for n in names)}
    return taken - (inner - used) - {module_name(path)}


def graph() -> dict[str, set[str]]:
    files = {module_name(path): path for path in ROOT.rglob("*.py")}
    return {name: imports(path, set(files)) for name, path in files.items()}


def floor(name: str) -> int:
    """0 is the top."""
    matches = [
        (len(prefix), number)
        for number, prefixes in enumerate(FLOORS)
        for prefix in prefixes.split()
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert matches, f"{name} is on no floor: add it to FLOORS"
    return max(matches)[1]


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Files that import each other in a loop, in order; None where there are none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for other in sorted(edges[name]):
            if found := visit(other):
                return found
        done.add(path.pop())
        return None

    return next(filter(None, map(visit, sorted(edges))), None)


def test_no_circle_of_imports():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    edges = graph()
    assert len(edges) > 150 and "layers.dense" in edges["layers.embed"]
    assert circle(edges) is None


def test_every_import_goes_down():
    upwards = [
        f"{name} -> {other}" for name, others in graph().items() for other in others if floor(name) > floor(other)
    ]
    assert not upwards, "imports that go up: " + ", ".join(sorted(upwards))
