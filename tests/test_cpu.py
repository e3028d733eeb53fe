"""The allocator's setting: taken where it helps, and left alone where an accelerator is to be used."""

import subprocess
import sys

from fmjax import cpu

FAULTS = """
import resource, sys
from fmjax import cpu
if sys.argv[1] == "keep":
    assert cpu.keep_freed_memory()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jnp.sin(jnp.cumsum(x, 0)) @ jnp.cumsum(x, 1).T)
x = jnp.ones((1024, 1024))
for _ in range(4):
    f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_steps_reuse_their_pages():
    run = lambda how: int(
        subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout
    )
    assert run("keep") < 0.2 * run("leave")


def test_it_is_left_alone_for_accelerators(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert not cpu.only_cpu() and not cpu.keep_freed_memory()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert cpu.only_cpu()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    assert not cpu.only_cpu()
