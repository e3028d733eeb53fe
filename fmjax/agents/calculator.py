"""Arithmetic: an expression's tree is walked, nothing is executed."""

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

from fmjax.agents.tools import ToolError

BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FARTHEST_DIGIT = 400
"""Digits that `round` may be asked for: of many more it makes ten to their number first."""


def rounded(value: float, *digits: float) -> float:
    """`round` of Python, to at most FARTHEST_DIGIT digits before or behind the point."""
    if len(digits) > 1:
        raise TypeError(f"round takes a number and how many digits, got {1 + len(digits)} numbers")
    if digits and (not isinstance(digits[0], int) or abs(digits[0]) > FARTHEST_DIGIT):
        raise ValueError(f"round takes a whole number of digits from -{FARTHEST_DIGIT} to {FARTHEST_DIGIT}")
    return round(value, *digits)


FUNCTIONS = {
    "abs": abs, "min": min, "max": max, "round": rounded, "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt,
    "exp": math.exp, "log": math.log, "sin": math.sin, "cos": math.cos, "tan": math.tan,
}  # fmt: skip
CONSTANTS = {"pi": math.pi, "e": math.e}
LONGEST, MOST_BITS = 400, 4096
"""Characters of an expression, and bits of a whole number in it."""


class Calculator:
    """+ - * / // % **, parentheses, and the functions of FUNCTIONS."""

    name = "calculator"
    description = "Evaluates arithmetic, such as (3 + 4) * 2 or sqrt(2)."
    parameters = {"expression": {"type": "string"}}

    def call(self, arguments: Mapping[str, Any]) -> str:
        """The value in decimal: whole numbers exactly, others to 12 digits. Raises ToolError."""
        return written(evaluate(arguments["expression"]))


def written(value: float) -> str:
    """A number in decimal; one that is whole as a whole number."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def evaluate(expression: str) -> float:
    """The value of an arithmetic expression. Raises ToolError for any other, and for numbers that are too large."""
    if len(expression) > LONGEST:
        raise ToolError(f"the expression has {len(expression)} characters, more than {LONGEST}")
    try:
        value = _value(ast.parse(expression.strip().replace("^", "**"), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ToolError(f"{expression!r} is no arithmetic: {error}") from None
    except (ZeroDivisionError, OverflowError, TypeError) as error:
        raise ToolError(f"{expression!r}: {error}") from None
    if isinstance(value, complex) or isinstance(value, float) and not math.isfinite(value):
        raise ToolError(f"{expression!r} is no finite real number")
    return value


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _small(node.value)
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            _check_power(left, right)
        return _small(BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id in FUNCTIONS:
            return _small(FUNCTIONS[node.func.id](*map(_value, node.args)))
    raise ValueError(f"{ast.unparse(node)} is not allowed; there are + - * / // % ** ( ) and {', '.join(FUNCTIONS)}")


def _small(value: float) -> float:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise OverflowError("a number has more than a thousand digits")
    return value


def _check_power(base: float, exponent: float) -> None:
    """Raises OverflowError before the time is spent: |base| is at least 2 ** (bit_length - 1)."""
    if isinstance(base, int) and isinstance(exponent, int) and exponent * (base.bit_length() - 1) > MOST_BITS:
        raise OverflowError("a number has more than a thousand digits")
