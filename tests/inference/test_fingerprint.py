"""A model's fingerprint is what it computes: its content, and the files of fmjax that answers are computed by."""

import ast
import dataclasses
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.code_digest import COMPUTING, PACKAGE
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.inference import fingerprint
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.load import Model
from fmjax.models.gpt import GPT
from tests.quick_keys import quick_key

NOT_COMPUTING = {
    "__init__.py objectives/__init__.py tasks/__init__.py config.py registry.py": "names, and what they stand for",
    "errors.py gguf_file.py hub.py small_files.py code_digest.py": "messages, files and names of code",
    "config_fields.py config_values.py": "options of generators out of texts, which answers are kept under",
    "parallel/mesh.py parallel/sharding.py": "where arrays lie, not what they are",
    "cache_folder.py": "where what is compiled is kept",
    "parallel/__init__.py parallel/hosts.py parallel/watch.py": "who else computes, and how far they are",
    "interop/exporter.py interop/peft.py checkpoint_files.py adapt/packed.py": "a model written to a folder",
    "data/codecs/base.py data/codecs/media.py": "values to arrays, which are what answers are computed from",
    "data/codecs/pixels.py": "values to arrays as well",
    "data/prepared.py data/run_tokenizer.py": "names of content, and what is checked of a vocabulary",
    "data/image_files.py file_lock.py": "which files an index is of, and who writes to it",
    "objectives/base.py": "what a run carried",
    "data/shuffle.py objectives/classification.py training/program.py": "the training of what is in the fingerprint",
    "tasks/protocol.py tasks/reading.py": "documents and requests, which answers are kept under",
    "tasks/capabilities.py": "which requests are refused, and with what words",
    "tasks/cost.py tasks/store.py": "what becomes of answers",
    "tasks/made/other_models.py": "names and digests of other models, which answers are kept under too",
}
"""Files of fmjax that computing ones take names from, and why answers are not computed by them."""


def files_of(part):
    """The files that a part of fmjax is, by their paths in it."""
    found = set()
    for path in PACKAGE.glob(part):
        found |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return {str(path.relative_to(PACKAGE)) for path in found}


def taken_from(file):
    """The files of fmjax that a file imports, anywhere in it, or names as an import path `fmjax.module:Object`."""
    names = []
    if not file.endswith(".py"):
        return set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively, which is not followed here"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"fmjax(\.\w+)+:\w+", str(node.value)):
            names.append(node.value.partition(":")[0])
    paths = [pathlib.Path(*name.split(".")[1:]) for name in names if name.partition(".")[0] == "fmjax"]
    made = [one for path in paths for one in (f"{path}.py", str(path / "__init__.py"))]
    return {one for one in made if (PACKAGE / one).is_file()}


def gives_functions(file):
    """Whether a file gives a model functions (`Model.functions`), which answers are then computed by."""
    calls = [node for node in ast.walk(ast.parse((PACKAGE / file).read_text())) if isinstance(node, ast.Call)]
    return any(keyword.arg == "functions" for call in calls for keyword in call.keywords)


def test_every_file_that_computes_answers_is_in_the_digest_of_fmjax():
    """What a computing file takes names from computes too, unless it is said above why not."""
    parts = {part: files_of(part) for part in COMPUTING}
    assert [part for part, files in parts.items() if not files] == [], "no such file, or a file that was renamed"
    computing = set().union(*parts.values())
    known = {file for files in NOT_COMPUTING for file in files.split()}
    taken = set().union(*map(taken_from, computing)) | set(filter(gives_functions, files_of("**/*.py")))
    missing = sorted(taken - computing - known)
    assert not missing, f"add to fmjax.code_digest.COMPUTING, or say in NOT_COMPUTING why not: {', '.join(missing)}"
    needless = sorted(known - (taken - computing))
    assert not needless, f"not needed in NOT_COMPUTING: {', '.join(needless)}"


MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=128, vocab_size=258, init_std=0.3)
PARAMS = nn.unbox(jax.jit(MODULE.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
MODEL = Model(MODULE, PARAMS, {}, ByteTokenizer())


def test_a_models_fingerprint_is_its_content():
    own = model_fingerprint(MODEL)
    assert own == model_fingerprint(dataclasses.replace(MODEL, source="elsewhere", step=7))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    halves = jax.tree.map(
        lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(*(["x"] if x.shape[0] % 8 == 0 else [])))),
        PARAMS,
    )
    assert not all(x.sharding == sharding for x in jax.tree.leaves(halves))
    assert own == model_fingerprint(dataclasses.replace(MODEL, params=halves))
    leaves, tree = jax.tree.flatten(PARAMS)
    nudged = leaves[0].at[(0,) * leaves[0].ndim].add(1e-6)
    swapped = jnp.flip(leaves[0])
    for leaf in (nudged, swapped):
        assert own != model_fingerprint(dataclasses.replace(MODEL, params=tree.unflatten([leaf, *leaves[1:]])))
    assert own != model_fingerprint(dataclasses.replace(MODEL, module=MODULE.clone(max_length=64)))
    assert own != model_fingerprint(dataclasses.replace(MODEL, add_bos=False))


def test_an_array_is_hashed_on_the_host_as_where_it_lies(monkeypatch):
    drawn = jax.random.normal(jax.random.key(0), (3, 5))
    arrays = [drawn, drawn.astype(jnp.bfloat16), drawn > 0, drawn.astype(jnp.int8), jnp.int32(7), jnp.zeros((0, 2))]
    found = fingerprint.array_fingerprints(arrays)
    monkeypatch.setattr(fingerprint, "SMALL", -1)
    assert found == fingerprint.array_fingerprints(arrays) and len({*found}) == 6
    with jax.enable_x64(True):
        wide = np.array([1.5, -2.0])
        there = fingerprint.array_fingerprints(wide)
        monkeypatch.setattr(fingerprint, "SMALL", 100)
        assert there == fingerprint.array_fingerprints(wide)
