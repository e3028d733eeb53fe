"""Memory of a process that trains on CPUs: what is set for it, and left alone where an accelerator is to be used."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

from fmjax import cpu

ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
FAULTS = """
import resource, sys
from fmjax import cpu
if sys.argv[1] == "keep":
    assert cpu.keep_freed_memory() and cpu.run_in_turn()
import jax, jax.numpy as jnp
# A temporary of 64 MB: glibc serves up to 32 MB from the heap once it has seen such sizes freed.
f = jax.jit(lambda x: jax.lax.optimization_barrier(2.0 * x).sum(0))
x = jnp.ones((4096, 4096))
f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# The heap grows by a few temporaries more, as other allocations settle between them, and then by none.
for _ in range(40):
    f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_steps_reuse_their_pages():
    run = lambda how: int(
        subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=os.environ | ONE_DEVICE
        ).stdout
    )
    kept, left = run("keep"), run("leave")
    assert kept < 0.5 * left


READY = """
import sys
from importlib.metadata import version
from fmjax import cpu
if sys.argv[1] == "in turn":
    cpu.set_up_training()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jax.lax.fori_loop(0, 500, lambda i, x: jnp.tanh(x @ x), x)).lower(jnp.ones((512, 512))).compile()
print(f(jnp.ones((512, 512))).is_ready())
"""


def test_a_step_does_not_begin_before_the_last_one_has_given_back_its_memory():
    ready = lambda how: subprocess.run(
        [sys.executable, "-c", READY, how], capture_output=True, text=True, check=True,
        env=os.environ | ONE_DEVICE,
    ).stdout.strip()  # fmt: skip
    assert (ready("in turn"), ready("at once")) == ("True", "False")


def test_it_is_left_alone_for_accelerators(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert not cpu.only_cpu() and not cpu.keep_freed_memory()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert cpu.only_cpu()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(cpu, "DEVICES", tmp_path)
    assert cpu.only_cpu()  # the package is there for its compiler
    (tmp_path / "accel0").touch()
    assert not cpu.only_cpu()


SETTINGS = """
import json, os, sys
import jax
from fmjax import cpu
for devices, variables in json.loads(sys.argv[1]):
    os.environ |= variables
    jax.config.update("jax_num_cpu_devices", devices)
    cpu.cores = lambda: 4
    print(cpu.run_in_turn(), cpu.order_collectives(), cpu.keep_products_whole(), os.environ["XLA_FLAGS"])
assert jax.jit(lambda x: x + 1)(1) == 2  # XLA knows what it was told last
"""


def test_simulated_devices_run_side_by_side_in_one_order_and_keep_products_whole():
    """But not one device, nor accelerators, which are left as JAX has them; as is what the user says. 4 cores."""
    count = lambda number: f"--xla_force_host_platform_device_count={number}"
    order, share = "--xla_cpu_enable_concurrency_optimized_scheduler", "--xla_cpu_multi_thread_eigen"
    known = version("jaxlib").startswith("0.10.")  # other versions are left alone
    flags = lambda flags, platforms="cpu": {"XLA_FLAGS": flags, "JAX_PLATFORMS": platforms}
    told_both = f"{order}=true {share}=true" if known else ""
    cases = [
        (1, flags(""), "True False False "),
        (4, flags("", "tpu,cpu"), "False False False "),
        (4, flags(told_both), f"False False False {told_both}"),
        (2, flags(""), f"False True False {order}=false" if known else "False False False "),
        (1, flags(count(4)), f"False {known} {known} {count(4)}" + f" {order}=false {share}=false" * known),
        (4, flags(""), f"False True True {order}=false {share}=false" if known else "False False False "),
    ]
    told = json.dumps([case[:2] for case in cases])
    found = subprocess.run(
        [sys.executable, "-c", SETTINGS, told], capture_output=True, text=True, env=os.environ | ONE_DEVICE
    )
    assert found.stdout.splitlines() == [case[2] for case in cases], found.stderr
