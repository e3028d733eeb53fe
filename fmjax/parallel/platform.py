"""The platform a program is traced for."""

import jax


def target_platform() -> str:
    """"cpu", "gpu" or "tpu": that of the devices of the mesh in context (`jax.set_mesh`), else of the default backend.

    A program may be lowered for devices that are not there, such as compile-only TPUs on a machine without one: there
    the mesh knows, and `jax.default_backend()` does not. Works inside `jit` and `shard_map` as outside. A mesh made
    without devices (`jax.sharding.AbstractMesh`) does not say.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform
