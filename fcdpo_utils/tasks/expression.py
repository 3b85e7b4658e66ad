"""Another toolset for arithmetic: whole expressions, one in each call."""

import ast
import re
from fractions import Fraction

from fcdpo_utils.arithmetic import OPERATIONS, Arithmetic, NumberTools, Step, compute
from fcdpo_utils.numbers import format_number, parse_number
from fcdpo_utils.tools import ToolError, tool

MAX_EXPRESSION_CHARACTERS = 200
MAX_EXPRESSION_DEPTH = 30
ALLOWED = "numbers, + - * / and parentheses"
FUNCTION_OF_NODE = {ast.Add: "Sum", ast.Sub: "Subtract", ast.Mult: "Multiply", ast.Div: "Divide"}


class CalculateTools(NumberTools):
    """One expression per call."""

    @staticmethod
    def write(function: str, a: str, b: str) -> str:
        left, right = (f"({number})" if "/" in number else number for number in (a, b))
        return f'Calculate("{left} {OPERATIONS[function][0]} {right}")'

    @tool('Calculate("2 * (3 + 4)")')
    def Calculate(self, expression: str) -> str:
        """Work out + - * / and parentheses."""
        steps, value = expression_steps(expression)
        if not steps:  # else a guessed number could be "calculated" and the answer would seem to follow
            raise ToolError("the expression needs at least one of + - * /")
        return format_number(value)


def expression_steps(expression: str) -> tuple[list[Step], Fraction]:
    """The operations of an expression in the order of evaluation, and its exact value. Raises `ToolError`."""
    if len(expression) > MAX_EXPRESSION_CHARACTERS or not re.fullmatch(r"[0-9.+\-*/() ]+", expression):
        raise ToolError(f"expected at most {MAX_EXPRESSION_CHARACTERS} characters: {ALLOWED}")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("cannot read the expression") from None
    return _evaluate(tree, MAX_EXPRESSION_DEPTH)


def result_of(step: Step) -> Fraction:
    """What one operation gives. Raises `ToolError` where it cannot be done."""
    function, *operands = step
    return compute(function, *map(parse_number, operands))


def _evaluate(node: ast.expr, depth: int) -> tuple[list[Step], Fraction]:
    if depth == 0:
        raise ToolError("the expression is nested too deeply")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        steps, value = _evaluate(node.operand, depth - 1)
        return steps, -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and (function := FUNCTION_OF_NODE.get(type(node.op))):
        (left, a), (right, b) = _evaluate(node.left, depth - 1), _evaluate(node.right, depth - 1)
        return [*left, *right, [function, format_number(a), format_number(b)]], compute(function, a, b)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            return [], parse_number(node.value)
        except ValueError:
            raise ToolError("a number is too large") from None
    raise ToolError(f"expected only {ALLOWED}")


Arithmetic.toolsets["expression"] = CalculateTools
