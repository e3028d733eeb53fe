"""The train step of a config compiled for devices that need not be there, and what it will take."""

import contextlib
import dataclasses
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fmjax.assemble import build_module, check_foreseen, open_data
from fmjax.errors import InputError
from fmjax.planning import counts, hlo, topology
from fmjax.training.checks import check_fit
from fmjax.training.hardware import chip
from fmjax.training.program import Program, make_program


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one train step takes; everything in bytes is of one device, seconds are a bound from below.

    Attributes:
      topology, num_devices, device_kind, mesh: the devices.
      hbm_bytes_per_device: main memory of a device; None where it is not known.
      parameter_bytes, optimizer_bytes, carry_bytes, batch_bytes: of the step's arguments.
      models_bytes: of the other models that the objective names, an argument too, whether the step reads them or not.
      argument_bytes: all arguments.
      temp_bytes: activations, gradients and whatever else the step keeps for a while; on TPUs what it returns beside
        its arguments too.
      peak_bytes_per_device: arguments, what is returned beside them, temporaries and the program.
      fits: whether the compiler accepted it and the peak is within the memory; None where that is not known.
      model_flops_per_step: by the convention of `fmjax.layers.flops`, over all devices; None where the module does
        not tell.
      hardware_flops_per_step: matrix products of the compiled program, over all devices.
      useful_flops: the quotient of the two.
      tokens_per_step: of the global batch; None where it has none.
      memory_traffic_bytes, link_bytes: moved in main memory, and over the links of each mesh axis.
      seconds: of each resource alone: "compute", "memory", "links AXIS" with what goes along several axes spread best.
      step_seconds_bound: of the slowest of them, as if all else hid behind it.
      mfu_bound: model FLOPs over peak FLOPs in that time; None where the chip's rates are not known.
      limited_by: that resource.
      collectives: how many of each kind run.
      uncounted: what is missing in the sums above, by name; with any of it there is no quotient and no bound.
      compile_seconds: of tracing and compiling.
    """

    topology: str
    num_devices: int
    device_kind: str
    mesh: dict[str, int]
    hbm_bytes_per_device: int | None
    parameter_bytes: int
    optimizer_bytes: int
    carry_bytes: int
    batch_bytes: int
    models_bytes: int
    argument_bytes: int
    temp_bytes: int
    peak_bytes_per_device: int
    fits: bool | None
    model_flops_per_step: float | None
    hardware_flops_per_step: float
    useful_flops: float | None
    tokens_per_step: int | None
    memory_traffic_bytes: float
    link_bytes: dict[str, float]
    seconds: dict[str, float]
    step_seconds_bound: float | None
    mfu_bound: float | None
    limited_by: str | None
    collectives: dict[str, int]
    uncounted: dict[str, int]
    compile_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts."""
        return dataclasses.asdict(self)


def plan(config, devices: Sequence[jax.Device], name: str, *, cache_dir: pathlib.Path) -> Plan:
    """The plan of a resolved config for `devices`, called `name`.

    Args:
      cache_dir: for data that have to be opened because they alone tell the shapes.

    Raises: InputError where the config does not fit the devices, or the compiled program cannot be read.
    """
    return plan_program(*planned_program(config, devices, cache_dir), name)


def planned_program(config, devices, cache_dir: pathlib.Path) -> tuple[Program, Mapping[str, Any]]:
    """(the run's `Program` on `devices`, shapes of one row of its data): what `fmjax.train` builds, without arrays."""
    module, example = shapes(config, cache_dir)
    program = make_program(config, module, example, devices, abstract=True)
    return program, program.row


def shapes(config, cache_dir: pathlib.Path):
    """(module, one row of data as ShapeDtypeStructs), without reading the data where the config tells both."""
    from fmjax.config import build
    from fmjax.data import DATASETS
    from fmjax.objectives import OBJECTIVES

    data = build(config["data"], DATASETS)
    module = build_module(config, {})
    example = getattr(data, "example", None)
    if example is None or getattr(module, "vocab_size", 0) is None:
        check_foreseen(config)
        opened = open_data(config, cache_dir, progress=True)
        module = build_module(config, opened.model_fields)
        check_fit(opened, module, build(config["objective"], OBJECTIVES))
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(opened.train[0]))
    return module, example


def plan_program(program: Program, example: Mapping[str, Any], name: str) -> Plan:
    """The plan of a program; arguments as `planned_program` returns them, `name` of the topology."""
    started = time.perf_counter()
    compiled = _compile(program)
    elapsed = time.perf_counter() - started
    mesh = program.mesh
    devices = list(mesh.devices.flat)
    counted = counts.count(hlo.parse(compiled.text), mesh.shape)
    batch_size = next(iter(program.batch_spec.values())).shape[0]
    model_flops = _model_flops(program.module, example, batch_size)
    hardware_flops = counted.flops * mesh.size
    peak = compiled.argument_bytes + compiled.temp_bytes + compiled.other_bytes
    memory = topology.memory_bytes(devices)
    seconds, bound, limited_by = _roofline(mesh, counted)
    known = chip(devices[0])
    state = program.spec.shapes
    tokens = example["tokens"].size if "tokens" in example else None
    return Plan(
        topology=name,
        num_devices=mesh.size,
        device_kind=devices[0].device_kind,
        mesh={axis: size for axis, size in mesh.shape.items()},
        hbm_bytes_per_device=memory,
        parameter_bytes=sum(map(_shard_bytes, (state.params, state.ema, state.wide_ema))),
        optimizer_bytes=_shard_bytes(state.opt_state),
        carry_bytes=_shard_bytes(state.carry),
        batch_bytes=_shard_bytes(program.batch_spec),
        models_bytes=_shard_bytes(program.others),
        argument_bytes=compiled.argument_bytes,
        temp_bytes=compiled.temp_bytes,
        peak_bytes_per_device=peak,
        fits=None if memory is None else compiled.accepted and peak <= memory,
        model_flops_per_step=model_flops,
        hardware_flops_per_step=hardware_flops,
        useful_flops=model_flops / hardware_flops if model_flops and hardware_flops and not counted.uncounted else None,
        tokens_per_step=tokens and batch_size * tokens,
        memory_traffic_bytes=counted.memory_bytes,
        link_bytes=dict(counted.link_bytes),
        seconds=seconds,
        step_seconds_bound=bound,
        mfu_bound=model_flops / (bound * known.peak_flops * mesh.size) if bound and model_flops else None,
        limited_by=limited_by,
        collectives=dict(counted.collectives),
        uncounted=dict(counted.uncounted),
        compile_seconds=elapsed,
    )


@dataclasses.dataclass(frozen=True)
class _Compiled:
    text: str
    argument_bytes: int
    temp_bytes: int
    other_bytes: int  # returned without being an argument too (on a TPU among the temporaries), and the program itself
    accepted: bool


def _compile(program: Program) -> _Compiled:
    lowered = program.lower_train_step()
    if program.mesh.devices.flat[0].platform != "tpu":
        with _no_compilation_cache():  # which takes programs that differ in the names of their scopes for the same
            return _measured(lowered.compile())
    # The compiler writes its result down even where it then finds that it does not fit.
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_module_re": ".*"}
        try:
            with _no_compilation_cache():  # a program from it is not written down
                compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if not _says_hbm_is_too_small(str(error)):
                raise
            text = _dumped(folder, ".after_optimizations.txt", error)
            arguments = _shard_bytes((program.spec.shapes, program.batch_spec, program.others))
            return _Compiled(text, arguments, max(0, _reported_bytes(folder, error) - arguments), 0, accepted=False)
        # Its statistics count values in the place of results or in faster memory as temporaries of main memory too.
        m = compiled.memory_analysis()
        temporaries = max(0, _reported_bytes(folder, None) - m.argument_size_in_bytes)
        text = _dumped(folder, ".after_optimizations.txt", None)
        return _Compiled(text, m.argument_size_in_bytes, temporaries, m.generated_code_size_in_bytes, accepted=True)


def _says_hbm_is_too_small(message: str) -> bool:
    """The words differ by version; other memories run out too, in messages that may mention this one."""
    return re.search("CompileTimeHbmOom|Ran out of memory (in memory space hbm|on HBM)", message) is not None


@contextlib.contextmanager
def _no_compilation_cache():
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether there is one is asked once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _measured(compiled) -> _Compiled:
    m = compiled.memory_analysis()
    returned = max(0, m.output_size_in_bytes - m.alias_size_in_bytes)
    other = returned + m.generated_code_size_in_bytes
    return _Compiled(compiled.as_text(), m.argument_size_in_bytes, m.temp_size_in_bytes, other, accepted=True)


def _dumped(folder: str, ending: str, error: Exception | None) -> str:
    """The compiler's text of the train step: of the largest program, if helpers of it were compiled too."""
    found = [path for path in pathlib.Path(folder).iterdir() if path.name.endswith(ending)]
    if not found:
        raise InputError(
            f"the compiler did not write its program down ({ending}){f': {error}' if error else ''}; "
            "is this version of libtpu older or newer than those fmjax was tried with?"
        )
    return max(found, key=lambda path: path.stat().st_size).read_text()


def _reported_bytes(folder: str, error: Exception | None) -> int:
    """Of main memory, arguments and results included: what the compiler compares with what there is."""
    report = _dumped(folder, "memory-usage-report.txt", error)
    main = re.search(r"Memory Space: default.*?Total bytes: (\d+)", report, re.DOTALL)
    if main is None:
        raise InputError(f"the compiler does not say how much memory it needs{f': {error}' if error else ''}")
    return int(main[1])


def _shard_bytes(tree) -> int:
    """Bytes of one device's shards of arrays that are only described."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def _model_flops(module, example, batch_size: int) -> float | None:
    if not hasattr(module, "flops_per_example"):
        return None
    return batch_size * module.flops_per_example({name: array.shape for name, array in example.items()})


def _roofline(mesh, counted: counts.Counts) -> tuple[dict[str, float], float | None, str | None]:
    """(seconds of each resource alone, the slowest's, its name), empty and None where nothing can be said."""
    known = chip(mesh.devices.flat[0])
    if known is None or counted.uncounted:
        return {}, None, None
    seconds = {"compute": counted.flops / known.peak_flops}
    if known.memory_bandwidth:
        seconds["memory"] = counted.memory_bytes / known.memory_bandwidth
    of_links = topology.link_seconds(counted.link_bytes, topology.axis_bandwidths(mesh))
    seconds |= {f"links {axis}": busy for axis, busy in of_links.items()}
    limited_by = max(seconds, key=seconds.get)
    return seconds, seconds[limited_by], limited_by
