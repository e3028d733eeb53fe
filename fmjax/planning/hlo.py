"""The text of a compiled XLA program as Python objects: computations, instructions, shapes, how often loops run."""

import dataclasses
import functools
import json
import math
import re
from typing import Any

from fmjax.errors import InputError

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "f4e2m1fn": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16,
    "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "token": 0,
    "opaque": 0,
}  # fmt: skip

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=?]*)\](\{[^{}]*\})?")
_BEGINNING = re.compile(r"\s*(ROOT\s+)?%?([\w.\-<>]+) = ")
_COMPUTATION = re.compile(r"(ENTRY\s+)?%?([\w.\-<>]+) (\(.*)?->.*\{\s*$")
_END = re.compile(r"\}(, execution_thread=.*)?\s*$")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-<>]+(?:#\d+)*)")  # `%x#2` is element 2 of the tuple %x


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program on one device: element type, dimensions, memory space (0 is the device's main memory)."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else None)
        if bits is None:
            raise InputError(f"the compiled program has arrays of type {self.dtype!r}, whose size is not known here")
        return -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: `name = kind opcode(arguments), attributes`; `kind` is its type, maybe a tuple of arrays."""

    name: str
    kind: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The word or braced group that follows `name=`."""
        found = re.search(rf"[ ,]{name}=(\{{[^{{}}]*\}}|[^,\s]+)", " " + self.attributes)
        return found and found[1]

    def called(self, name: str) -> str | None:
        """The name of the computation that follows `name=`."""
        found = re.search(rf"[ ,]{name}=%?([\w.\-<>]+)", " " + self.attributes)
        return found and found[1]

    @property
    def backend_config(self) -> dict[str, Any]:
        """What the compiler tells its backend about it, JSON in quotes or not; empty where it is something else."""
        found = re.search(r"backend_config=", self.attributes)
        try:
            value, _ = json.JSONDecoder().raw_decode(self.attributes, found.end()) if found else ({}, 0)
            value = json.loads(value) if isinstance(value, str) else value
        except ValueError:  # some calls have text of other kinds
            value = {}
        return value if isinstance(value, dict) else {}

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from: its name stack, joined by slashes."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Computation(dict):
    """Instructions by name, in order."""

    @functools.cached_property
    def root(self) -> Instruction:
        return next((one for one in self.values() if one.is_root), None) or list(self.values())[-1]

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        return {int(one.arguments): one.name for one in self.values() if one.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {name: [] for name in self}
        for one in self.values():
            for operand in dict.fromkeys(one.operands):
                found.setdefault(operand, []).append(one)
        return found


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """A compiled module: its computations, the first of which to run is `entry`."""

    computations: dict[str, Computation]
    entry: str

    def trip_count(self, caller: Computation, loop: Instruction) -> float | None:
        """How often a `while` of `caller` runs its body.

        XLA writes it down; or the loop counts one number of its state up to a constant, as `lax.scan` does; or only a
        run can tell, and the scope that it was written in, "trips_A_in_B", says that its body runs A times when the
        loop runs B times (`fmjax.layers.attention.blocks`). None for a loop of another kind.
        """
        known = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        said = re.search(r"trips_(\d+)_in_(\d+)\)*/while$", loop.op_name)
        if said:
            return int(said[1]) / int(said[2])
        condition = self.computations[loop.called("condition")]
        bound = [int(one.arguments) for one in condition.values() if _is_whole_constant(one)]
        counter = [one for one in condition.values() if one.opcode == "get-tuple-element"]
        if len(bound) != 1 or len(counter) != 1 or self._direction(condition) != "LT":
            return None
        index = int(counter[0].attribute("index") or 0)
        step = self._step(self.computations[loop.called("body")], index)
        start = self._initial(caller, loop, index)
        if not step or step < 0 or start is None:
            return None
        return max(0, -(-(bound[0] - start) // step))

    def _direction(self, condition: Computation) -> str | None:
        """How the counter, on the left, is compared with its bound."""
        compare, place = condition.root, condition
        if compare.opcode == "fusion":  # of the comparison alone
            place = self.computations[compare.called("calls")]
            compare = place.root
        if compare.opcode != "compare":
            return None
        left = place[compare.operands[0]]
        if left.opcode == "parameter" and place is not condition:
            left = condition[condition.root.operands[int(left.arguments)]]
        return None if _is_whole_constant(left) else compare.attribute("direction")

    def _initial(self, caller: Computation, loop: Instruction, index: int) -> int | None:
        """What the counter starts from."""
        state = caller.get(loop.operands[0])
        value = caller.get(state.operands[index]) if state is not None and state.opcode == "tuple" else None
        while value is not None and value.opcode in _SAME:
            value = caller.get(value.operands[0])
        return int(value.arguments) if value is not None and _is_whole_constant(value) else None

    def _step(self, body: Computation, index: int) -> int | None:
        """What one run of the body adds to the counter (a compiler may unroll), None where that is not seen."""
        value, computation, total = body[body.root.operands[index]], body, 0
        while True:
            if value.opcode in _SAME:
                value = computation[value.operands[0]]
            elif value.opcode == "fusion":
                inside = self.computations[value.called("calls")]
                added = _added(inside, inside.root)
                numbers = [computation[name] for name in value.operands if not _is_whole_constant(computation[name])]
                if added is None or len(numbers) != 1:
                    return None
                total, value = total + added, numbers[0]
            elif value.opcode == "add":
                added = _added(computation, value)
                if added is None:
                    return None
                total += added
                value = next(computation[name] for name in value.operands if not _is_whole_constant(computation[name]))
            else:
                return total


_SAME = ("copy", "bitcast", "copy-done", "copy-start", "optimization-barrier")


def _added(computation: Computation, one: Instruction) -> int | None:
    """The constant that an addition adds, None for anything else."""
    operands = [computation[name] for name in one.operands]
    constants = [int(x.arguments) for x in operands if _is_whole_constant(x)]
    return constants[0] if one.opcode == "add" and len(constants) == 1 else None


def _is_whole_constant(one: Instruction) -> bool:
    return one.opcode == "constant" and re.fullmatch(r"-?\d+", one.arguments.strip()) is not None


def parse(text: str) -> HloProgram:
    """The program that XLA printed. Raises InputError for text that is no HLO module."""
    computations, entry, current = {}, None, None
    for line in _logical_lines(text):
        if current is None:
            header = _COMPUTATION.match(line)
            if header:
                current = computations[header[2]] = Computation()
                entry = header[2] if header[1] else entry
        elif _END.match(line):
            _add_elements(current)
            current = None
        else:
            one = _instruction(line)
            current[one.name] = one
    if entry is None:
        raise InputError("the compiler's text holds no entry computation; was the program printed whole?")
    return HloProgram(computations, entry)


def _logical_lines(text: str):
    """Lines, those that continue an instruction (attributes with line breaks) joined to it."""
    waiting = None
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        is_header = line.startswith(("%", "ENTRY", "HloModule"))
        if is_header or _BEGINNING.match(line) or _END.match(line) or not line.strip():
            if waiting:
                yield waiting
            waiting = line
        else:
            waiting = (waiting or "") + " " + line.strip()
    if waiting:
        yield waiting


def _instruction(line: str) -> Instruction:
    beginning = _BEGINNING.match(line)
    if not beginning:
        raise InputError(f"the compiled program has a line that is no instruction: {line[:120]!r}")
    rest = line[beginning.end() :]
    end = _matching(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _matching(rest, opening)
    arguments = rest[opening + 1 : closing - 1]
    return Instruction(
        name=beginning[2],
        kind=kind,
        arrays=_arrays(kind),
        opcode=rest[:opening],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[closing:],
        is_root=beginning[1] is not None,
    )


def _add_elements(computation: Computation) -> None:
    """What newer compilers write as `%x#2` becomes an instruction of its own, as older ones have it."""
    wanted = dict.fromkeys(name for one in computation.values() for name in one.operands if "#" in name)
    for name in sorted(wanted, key=len):
        source, _, index = name.rpartition("#")
        if source not in computation:  # an element of an element that nobody else asks for
            computation[source] = _element(computation, source)
        computation[name] = _element(computation, name)


def _element(computation: Computation, name: str) -> Instruction:
    source, _, index = name.rpartition("#")
    kind = _split(computation[source].kind)[int(index)]
    return Instruction(
        name=name, kind=kind, arrays=_arrays(kind), opcode="get-tuple-element", operands=(source,),
        arguments=f"%{source}", attributes=f", index={index}", is_root=False,
    )  # fmt: skip


def _split(kind: str) -> list[str]:
    """The types of a tuple's elements."""
    parts, depth, start = [], 0, 1
    for index, letter in enumerate(kind):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (depth == 0 and index):
            parts.append(kind[start:index].strip())
            start = index + 1
    return parts


def _matching(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth, quoted = 0, False
    for index in range(start, len(text)):
        letter = text[index]
        if letter == '"' and text[index - 1] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return index + 1
    raise InputError(f"the compiled program has unbalanced parentheses: {text[:120]!r}")


def _arrays(kind: str) -> tuple[Array, ...]:
    found = []
    for dtype, dimensions, layout in _ARRAY.findall(kind):
        shape = tuple(int(d.removeprefix("<=")) for d in dimensions.split(",") if d)
        space = _SPACE.search(layout or "")
        found.append(Array(dtype, shape, int(space[1]) if space else 0))
    return tuple(found)
