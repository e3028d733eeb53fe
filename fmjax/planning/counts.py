"""What a compiled program does on one device: FLOPs, bytes of its memory, bytes over the links of each mesh axis.

Read off the optimised program, so that what the compiler computes again, computes twice on several devices, or moves
although nobody asked is counted too. Loop bodies count as often as they run; of a conditional, the costliest branch.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from fmjax.errors import InputError
from fmjax.planning import kernels
from fmjax.planning.hlo import Array, Computation, HloProgram, Instruction

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# What neither reads nor writes memory, or whose operands and results are counted elsewhere.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "while", "conditional", "call", "async-update",
}  # fmt: skip


@dataclasses.dataclass
class Counts:
    """Sums over one step, of one device.

    Attributes:
      flops: of matrix products and convolutions, 2 for a multiplication and an addition.
      memory_bytes: read from and written to the device's main memory by instructions outside of fusions.
      link_bytes: what the device sends, by mesh axes joined by "+", as rings of all devices along them do it: what an
        all-to-all sends counts once for every link it passes on its way, a quarter of the ring on average.
      collectives: how many of each kind run.
      uncounted: what the sums lack: kernels whose FLOPs are not known, loops that count once though they may run often.
    """

    flops: float = 0.0
    memory_bytes: float = 0.0
    link_bytes: Counter = dataclasses.field(default_factory=Counter)
    collectives: Counter = dataclasses.field(default_factory=Counter)
    uncounted: Counter = dataclasses.field(default_factory=Counter)

    def add(self, other: "Counts", times: float) -> None:
        self.flops += times * other.flops
        self.memory_bytes += times * other.memory_bytes
        for name in ("link_bytes", "collectives", "uncounted"):
            mine = getattr(self, name)
            for key, value in getattr(other, name).items():
                mine[key] += times * value if name == "link_bytes" else math.ceil(times * value)


def count(program: HloProgram, mesh_shape: Mapping[str, int]) -> Counts:
    """Counts of the whole program.

    Args:
      mesh_shape: sizes of the mesh's axes in order; the program's partition i is device i of the flattened mesh.

    Raises: InputError for a group or shape in the program that cannot be read.
    """
    return _Counter(program, mesh_shape).computation(program.entry)


class _Counter:
    def __init__(self, program: HloProgram, mesh_shape: Mapping[str, int]):
        self.program, self.mesh_shape = program, dict(mesh_shape)
        self.known: dict[str, Counts] = {}

    def computation(self, name: str) -> Counts:
        if name not in self.known:
            found = Counts()
            computation = self.program.computations[name]
            for one in computation.values():
                self.instruction(found, computation, one)
            self.known[name] = found
        return self.known[name]

    def instruction(self, found: Counts, computation: Computation, one: Instruction) -> None:
        if one.opcode == "while":
            times = self.program.trip_count(computation, one)
            if times is None:
                found.uncounted["loop whose length depends on data"] += 1
            found.add(self.computation(one.called("body")), 1 if times is None else times)
        elif one.opcode == "conditional":
            branches = [self.computation(name) for name in _branches(one)]
            found.add(max(branches, key=lambda b: (b.flops, b.memory_bytes)), 1)
        elif one.opcode in ("call", "async-start"):
            inside = self.computation(one.called("calls") or one.called("to_apply"))
            found.add(inside, 1)
        elif one.opcode == "fusion":
            self.fused(found, one.called("calls"))
            found.memory_bytes += self.fusion_bytes(computation, one)
        else:
            found.flops += self.flops(found, computation, one)
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                self.collective(found, computation, one, kind)
            found.memory_bytes += _bytes(computation, one)

    def fused(self, found: Counts, name: str) -> None:
        """FLOPs and collectives of a fused computation: the bytes it moves in memory stay inside."""
        computation = self.program.computations[name]
        for one in computation.values():
            if one.opcode in ("fusion", "call"):
                self.fused(found, one.called("calls") or one.called("to_apply"))
                continue
            found.flops += self.flops(found, computation, one)
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                # TPUs scatter what they have reduced within one fusion: an all-reduce, and a slice of it.
                users = computation.users.get(one.name, [])
                scattered = kind == "all-reduce" and users and all(user.opcode == "dynamic-slice" for user in users)
                self.collective(found, computation, one, "reduce-scatter" if scattered else kind)

    def flops(self, found: Counts, computation: Computation, one: Instruction) -> float:
        if one.opcode != "custom-call":
            return _product_flops(computation, one)
        flops = kernels.flops(computation, one)
        if flops is None:
            target = kernels.call_target(one)
            found.uncounted[re.sub(r"[.\d]+$", "", one.name) if target == "tpu_custom_call" else target] += 1
        return flops or 0.0

    def fusion_bytes(self, computation: Computation, one: Instruction) -> float:
        inside = self.program.computations[one.called("calls")]
        updated = _updated_in_place(inside)
        total = 0.0
        for index, operand in enumerate(one.operands):
            parameter = inside.parameters.get(index)
            arrays = computation[operand].arrays if operand in computation else ()
            if len(arrays) != 1 or arrays[0].space or parameter in updated:
                continue
            total += min(self.read_bytes(inside, parameter), arrays[0].num_bytes)
        roots = [inside[name] for name in inside.root.operands] if inside.root.opcode == "tuple" else [inside.root]
        for array, root in zip(one.arrays, roots):
            if array.space == 0:
                source = _through(inside, root)
                if source.opcode == "dynamic-update-slice":
                    total += _first(inside, source.operands[1]).num_bytes
                else:
                    total += array.num_bytes
        return total

    def read_bytes(self, inside: Computation, name: str | None) -> float:
        """What a fused computation reads of a value: all of it, or only the slices it takes."""
        total = 0.0
        for user in inside.users.get(name, []):
            if user.opcode == "bitcast":
                total += self.read_bytes(inside, user.name)
            elif user.opcode == "fusion":
                nested = self.program.computations[user.called("calls")]
                places = [place for place, operand in enumerate(user.operands) if operand == name]
                total += sum(self.read_bytes(nested, nested.parameters.get(place)) for place in places)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                total += user.arrays[0].num_bytes
            else:
                return math.inf
        return total

    def collective(self, found: Counts, computation: Computation, one: Instruction, kind: str) -> None:
        operands = [array for name in one.operands for array in computation[name].arrays]
        size = float(sum(array.num_bytes for array in operands))
        axes, members = self.axes(one)
        if members == 1:
            return
        share = (members - 1) / members
        sent = {
            "all-reduce": 2 * share * size,
            "all-gather": (members - 1) * size,
            "reduce-scatter": share * size,
            "all-to-all": share * size * max(1.0, members / 4),
            "collective-permute": size,
            "collective-broadcast": size,
        }[kind]
        found.link_bytes[axes] += sent
        found.collectives[kind] += 1

    def axes(self, one: Instruction) -> tuple[str, int]:
        """(names of the mesh axes that a collective goes along, devices in one of its groups)."""
        pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", one.attributes)
        if pairs:
            members = np.array([[int(d) for d in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
            groups, count = members, 2
        else:
            groups = replica_groups(one.attributes, math.prod(self.mesh_shape.values()))
            count = groups.shape[1]
        shape = tuple(self.mesh_shape.values())
        places = np.stack(np.unravel_index(groups, shape), axis=-1)  # [groups, members, axes]
        moved = (places != places[:, :1]).any(axis=(0, 1))
        names = [name for name, is_moved in zip(self.mesh_shape, moved) if is_moved]
        return "+".join(names), count


def replica_groups(attributes: str, num_devices: int) -> np.ndarray:
    """Groups of devices, int [groups, members], in any of the ways XLA prints them. Raises InputError for another."""
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if found:
        shape, dimensions = _numbers(found[1]), _numbers(found[2])
        order = np.arange(math.prod(dimensions)).reshape(dimensions)
        if found[3]:
            order = order.transpose(_numbers(found[3]))
        return order.reshape(shape)
    found = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes)
    if found:
        return _mesh_groups(*found.groups())
    found = re.search(r"replica_groups=\{(\{[\d,{}]*\})?\}", attributes)
    if found:
        groups = re.findall(r"\{([\d,]+)\}", found[1] or "")
        return np.array([_numbers(group) for group in groups] or [range(num_devices)])
    raise InputError(f"a collective's groups cannot be read: {attributes[:200]!r}")


def _mesh_groups(mesh: str, devices: str | None, along: str) -> np.ndarray:
    """Groups along some axes of a mesh: of "'a'=2,'b'=8", devices None or "[8,2]T(1,0)", and "'a','b':(2)4", where the
    latter is the middle one of the axis taken as 2 x 4 x 1."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    wanted = [
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along)
    ]
    dimensions = []  # (axis, product of what comes before within it, size)
    for name, size in sizes.items():
        cuts = {1, size} | {b for n, b, _ in wanted if n == name} | {b * k for n, b, k in wanted if n == name}
        cuts = sorted(cuts)
        dimensions += [(name, low, high // low) for low, high in zip(cuts, cuts[1:])]
    order = _iota(devices) if devices else np.arange(math.prod(sizes.values()))
    order = order.reshape([size for _, _, size in dimensions])
    inside = [
        i
        for name, before, k in wanted
        for i, (axis, low, _) in enumerate(dimensions)
        if axis == name and before <= low < before * k
    ]
    outside = [i for i in range(len(dimensions)) if i not in inside]
    members = math.prod(dimensions[i][2] for i in inside)
    return order.transpose([*outside, *inside]).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
    """Devices as XLA lists them: "0,2,1,3", or "[2,4]T(1,0)", the numbers from 0 in that shape, transposed."""
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.array(_numbers(text))
    shape = _numbers(found[1])
    order = np.arange(math.prod(shape)).reshape(shape)
    return (order.transpose(_numbers(found[2])) if found[2] else order).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _branches(one: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if found:
        return re.findall(r"%?([\w.\-<>]+)", found[1])
    return [one.called("true_computation"), one.called("false_computation")]


def _first(computation: Computation, name: str) -> Array:
    return computation[name].arrays[0]


def _product_flops(computation: Computation, one: Instruction) -> float:
    if one.opcode == "dot":
        lhs = _first(computation, one.operands[0]).shape
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        over = math.prod(lhs[int(d)] for d in contracted[1].split(",") if d) if contracted else 1
        return 2.0 * one.arrays[0].size * over
    if one.opcode == "convolution":
        return _convolution_flops(computation, one)
    return 0.0


def _convolution_flops(computation: Computation, one: Instruction) -> float:
    """Only products with what is there count: XLA writes batched matrix products as convolutions with padding."""
    lhs, rhs = (_first(computation, name).shape for name in one.operands[:2])
    out = one.arrays[0].shape
    left, right, result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes).groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", one.attributes) or [""])[0]))
    total = 2.0 * out[result.index("b")] * out[result.index("f")] * rhs[right.index("i")]
    for d in range(len(result) - 2):

        def part(key, default):
            return window[key].split("x")[d] if key in window else default

        low = int(part("pad", "0_0").split("_")[0])
        stride, dilation = int(part("stride", "1")), int(part("rhs_dilate", "1"))
        spread = int(part("lhs_dilate", "1"))
        size, inputs, outputs = rhs[right.index(str(d))], lhs[left.index(str(d))], out[result.index(str(d))]
        at = np.arange(outputs)[:, None] * stride - low + np.arange(size)[None, :] * dilation
        total *= int(((at >= 0) & (at < (inputs - 1) * spread + 1) & (at % spread == 0)).sum())
    return total


def _bytes(computation: Computation, one: Instruction) -> float:
    """Main memory that an instruction outside of fusions reads and writes."""
    if one.opcode in _FREE or one.opcode.endswith("-done"):
        return 0.0
    written = sum(array.num_bytes for array in one.arrays if array.space == 0)
    if one.opcode == "custom-call" and (scratch := kernels.workspace(one)):
        written -= scratch.num_bytes  # how much of it is used is not known
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return written + sum(array.num_bytes for array in one.arrays if _first(computation, one.operands[0]).space == 0)
    if one.opcode == "dynamic-update-slice":
        update = _first(computation, one.operands[1])
        return 2.0 * update.num_bytes
    if one.opcode == "copy-start":  # its result is what it writes, what it reads, and a handle
        return float(sum(array.num_bytes for array in one.arrays[:2] if array.space == 0))
    if one.opcode.endswith("-start"):
        # Its result repeats its operands, beside what it makes.
        made = one.arrays[len(one.operands) :]
        written = sum(array.num_bytes for array in made if array.space == 0)
        if one.opcode == "slice-start":
            return float(written + sum(array.num_bytes for array in made if array.dtype not in ("u32", "s32")))
    arrays = [array for name in one.operands if name in computation for array in computation[name].arrays]
    return float(written + sum(array.num_bytes for array in arrays if array.space == 0))


def _through(computation: Computation, one: Instruction) -> Instruction:
    while one.opcode in ("bitcast", "copy", "convert", "reshape") and one.operands:
        one = computation[one.operands[0]]
    return one


def _updated_in_place(inside: Computation) -> set[str]:
    """Parameters of a fusion that it only writes a slice of."""
    found = set()
    for one in inside.values():
        if one.opcode == "dynamic-update-slice":
            target = _through(inside, inside[one.operands[0]])
            if target.opcode == "parameter":
                found.add(target.name)
    return found
