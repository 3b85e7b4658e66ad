"""Arithmetic word problems: generated stories, the number tools that solve them, and the check of an answer.

Wording and gold steps of a problem both come from one `Schema` record. Writes nothing; knows nothing of prompts,
models or labels (a mistaken chain is only offered here, whether it is wrong is found by running it).
"""

from __future__ import annotations

import ast
import hashlib
import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from fcdpo_utils.calls import parse_call
from fcdpo_utils.functions import MAX_MAGNITUDE, Number, Refused, Toolset, format_number, parse_number, tool
from fcdpo_utils.tasks.base import Mistake, Problem, Task

LEVELS = (2, 3, 4, 5)
SPLITS = ("train", "test")
MAX_EXPRESSION_CHARACTERS = 200
MAX_EXPRESSION_DEPTH = 30
MAX_DRAWS = 20_000

Step = list[str]  # [function, a, b], numbers as text: JSON-able
Link = tuple[str, Fraction | int, Fraction | int]  # a step whose int operand is the index of an earlier step

OPERATIONS: dict[str, tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    "Sum": ("+", operator.add),
    "Subtract": ("-", operator.sub),
    "Multiply": ("*", operator.mul),
    "Divide": ("/", operator.truediv),
}
FUNCTION_OF_SYMBOL = {symbol: function for function, (symbol, _) in OPERATIONS.items()}
FUNCTION_OF_NODE = {ast.Add: "Sum", ast.Sub: "Subtract", ast.Mult: "Multiply", ast.Div: "Divide"}
_ANSWER = re.compile(
    r"(?P<sign>[+-]?)\$?(?P<number>-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*|/\d+)?|-?\.\d+) ?%?(?: ?[A-Za-z]+)?\.?",
    re.ASCII,
)
_QUESTION_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?", re.ASCII)


def compute(function: str, a: Fraction, b: Fraction) -> Fraction:
    """The exact result of one operation. Raises `Refused` for a division by zero or a result beyond 1e15."""
    if function == "Divide" and b == 0:
        raise Refused("cannot divide by zero")
    result = OPERATIONS[function][1](a, b)
    if abs(result) > MAX_MAGNITUDE or result.denominator > MAX_MAGNITUDE:
        raise Refused(f"the result is beyond {MAX_MAGNITUDE}")
    return result


# ---- answers


def parse_answer(text: str) -> Fraction:
    """One number as people write it: "$1,250.50", "20%", "3/4", "12 apples."; a percent sign is only dropped.

    Raises ValueError for several numbers, other text, True, nan and inf.
    """
    match = _ANSWER.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"expected one number, got {str(text)[:60]!r}")
    return parse_number(match["sign"] + match["number"].replace(",", ""))


def answers_equal(a: Fraction, b: Fraction) -> bool:
    """Two whole numbers exactly, anything else within a relative 1e-6."""
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= max(abs(a), abs(b)) / 10**6


# ---- tools


class NumberTools(Toolset):
    """What both toolsets share: the results so far, and the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Fraction] = []

    @tool("Answer(36)")
    def Answer(self, value: Number) -> str:
        """Record the final answer."""
        self.answer = format_number(value)
        return "Answer recorded"

    def answer_follows(self) -> bool:
        """Whether the recorded answer is a result that this chain computed."""
        return self.answer is not None and any(answers_equal(parse_number(self.answer), r) for r in self.results)

    def _record(self, result: Fraction) -> str:
        self.results.append(result)
        return format_number(result)


class ArithmeticTools(NumberTools):
    """One operation per call."""

    @tool("Sum(2, 3)")
    def Sum(self, a: Number, b: Number) -> str:
        """Add a and b."""
        return self._record(compute("Sum", a, b))

    @tool("Subtract(9, 4)")
    def Subtract(self, a: Number, b: Number) -> str:
        """Take b away from a."""
        return self._record(compute("Subtract", a, b))

    @tool("Multiply(2, 3)")
    def Multiply(self, a: Number, b: Number) -> str:
        """Multiply a by b."""
        return self._record(compute("Multiply", a, b))

    @tool("Divide(8, 2)")
    def Divide(self, a: Number, b: Number) -> str:
        """Divide a by b."""
        return self._record(compute("Divide", a, b))


class CalculateTools(NumberTools):
    """One expression per call."""

    @tool('Calculate("2 * (3 + 4)")')
    def Calculate(self, expression: str) -> str:
        """Work out + - * / and parentheses."""
        steps, value = expression_steps(expression)
        if not steps:  # else a guessed number could be "calculated" and the answer would seem to follow
            raise Refused("the expression needs at least one of + - * /")
        return self._record(value)


def expression_steps(expression: str) -> tuple[list[Step], Fraction]:
    """The operations of an expression in the order of evaluation, and its exact value.

    Raises `Refused` for anything but numbers, + - * / and parentheses.
    """
    if len(expression) > MAX_EXPRESSION_CHARACTERS or not re.fullmatch(r"[0-9.+\-*/() ]+", expression):
        raise Refused(f"expected at most {MAX_EXPRESSION_CHARACTERS} characters: numbers, + - * / and parentheses")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused("cannot read the expression") from None
    steps: list[Step] = []
    return steps, _evaluate(tree, steps, MAX_EXPRESSION_DEPTH)


def _evaluate(node: ast.expr, steps: list[Step], depth: int) -> Fraction:
    if depth == 0:
        raise Refused("the expression is nested too deeply")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate(node.operand, steps, depth - 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in FUNCTION_OF_NODE:
        function = FUNCTION_OF_NODE[type(node.op)]
        a, b = _evaluate(node.left, steps, depth - 1), _evaluate(node.right, steps, depth - 1)
        steps.append([function, format_number(a), format_number(b)])
        return compute(function, a, b)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            return parse_number(node.value)
        except ValueError:
            raise Refused("a number is too large") from None
    raise Refused("expected only numbers, + - * / and parentheses")


# ---- stories


@dataclass(frozen=True)
class Schema:
    """One kind of story. Letters are its numbers, in the order of the text; r1, r2, ... the results of earlier steps.

    `steps` is "Function operand operand; ...", `money` allows results with cents, where all others are whole.
    """

    name: str
    steps: str
    numbers: dict[str, Sequence[int | Fraction]]
    phrasings: tuple[str, ...]
    money: bool = False

    @property
    def level(self) -> int:
        return self.steps.count(";") + 1

    def solve(self, numbers: dict[str, Fraction]) -> tuple[list[Step], list[Fraction]]:
        """The gold steps with their numbers filled in, and the result of each."""
        known, steps, results = dict(numbers), [], []
        for index, step in enumerate(self.steps.split("; "), start=1):
            function, *operands = step.split()
            a, b = (known[o] if o in known else Fraction(o) for o in operands)
            known[f"r{index}"] = compute(function, a, b)
            steps.append([function, format_number(a), format_number(b)])
            results.append(known[f"r{index}"])
        return steps, results

    def sensible(self, numbers: dict[str, Fraction], results: list[Fraction]) -> bool:
        """Positive whole results (cents for money), and no value twice: then each operand has one origin."""
        values = [*numbers.values(), *results]
        unit = 100 if self.money else 1
        return len(set(values)) == len(values) and all(r > 0 and (r * unit).denominator == 1 for r in results)


FEW, SOME, MANY = range(2, 10), range(3, 21), range(4, 61)
PRICES = [Fraction(n, 2) for n in range(3, 31)]
BILLS = range(20, 301, 10)

SCHEMAS = (
    Schema(
        "packs_plus",
        "Multiply a b; Sum r1 c",
        {"a": FEW, "b": SOME, "c": MANY},
        (
            "{name} has {a} {boxes} with {b} {things} in each {box}. Then {they} finds {c} more {things}. "
            "How many {things} does {name} have now?",
            "There are {a} {boxes} on {name}'s shelf and each one holds {b} {things}. Another {c} {things} lie on "
            "the table. How many {things} are there altogether?",
            "{name} opens {a} {boxes}, takes {b} {things} out of each, and adds {c} more {things} from a drawer. "
            "How many {things} is that in total?",
        ),
    ),
    Schema(
        "packs_minus",
        "Multiply a b; Subtract r1 c",
        {"a": FEW, "b": SOME, "c": MANY},
        (
            "{name} has {a} {boxes} with {b} {things} in each {box}. {They} gives {c} {things} to {other}. "
            "How many {things} does {name} have left?",
            "{name} fills {a} {boxes} with {b} {things} each. Later {c} of the {things} get lost. "
            "How many {things} remain?",
            "The shop of {name} gets {a} {boxes}, each holding {b} {things}, and sells {c} {things} on the first day. "
            "How many {things} are still in the shop?",
        ),
    ),
    Schema(
        "collect_share",
        "Sum a b; Divide r1 c",
        {"a": MANY, "b": MANY, "c": FEW},
        (
            "{name} collects {a} {things} in the morning and {b} {things} in the afternoon. {They} shares them "
            "equally among {c} friends. How many {things} does each friend get?",
            "{name} has {a} {things} and {other} has {b}. They put them together and pack them into {c} {boxes}, "
            "the same number in each. How many {things} go into each {box}?",
            "On Monday {name} makes {a} {things}, and on Tuesday {b} more. All of them are split evenly between "
            "{c} children. How many {things} does one child receive?",
        ),
    ),
    Schema(
        "change",
        "Multiply a b; Subtract c r1",
        {"a": FEW, "b": PRICES, "c": BILLS},
        (
            "{name} buys {a} {things} for {b} dollars each and pays with {c} dollars. "
            "How many dollars of change does {they} get?",
            "In the shop {name} picks {a} {things} that cost {b} dollars each. {They} hands over {c} dollars. "
            "How much money does {name} get back, in dollars?",
            "{name} needs {a} {things} at a price of {b} dollars each. {They} has {c} dollars in a wallet. "
            "How many dollars are left after the purchase?",
        ),
        money=True,
    ),
    Schema(
        "two_kinds",
        "Multiply a b; Multiply c d; Sum r1 r2",
        {"a": FEW, "b": PRICES, "c": FEW, "d": PRICES},
        (
            "{name} buys {a} {things} for {b} dollars each and {c} {extras} for {d} dollars each. "
            "How many dollars does {they} pay in total?",
            "At the market {name} sells {a} {things} at {b} dollars each. {They} also sells {c} {extras} at {d} "
            "dollars each. How much money does {name} earn, in dollars?",
            "{name} orders {a} {things}, and each costs {b} dollars. {They} adds {c} {extras}, and each costs {d} "
            "dollars. What is the whole bill in dollars?",
        ),
        money=True,
    ),
    Schema(
        "leftovers_shared",
        "Multiply a b; Subtract r1 c; Divide r2 d",
        {"a": FEW, "b": SOME, "c": SOME, "d": FEW},
        (
            "{name} bakes {a} trays of {b} cookies each. The family eats {c} cookies. The rest are shared equally "
            "among {d} neighbors. How many cookies does each neighbor get?",
            "{name} has {a} {boxes} of {b} {things} each and throws away {c} broken {things}. The others are put "
            "into {d} equal piles. How many {things} are in each pile?",
            "There are {a} rows of {b} {things} in the shop of {name}. After {c} {things} are sold, the remaining "
            "ones are split evenly over {d} shelves. How many {things} are on each shelf?",
        ),
    ),
    Schema(
        "times_as_many",
        "Multiply a b; Sum a r1; Subtract r2 c",
        {"a": MANY, "b": range(3, 10), "c": SOME},
        (
            "{name} has {a} {things}. {other} has {b} times as many. Together they give away {c} {things}. "
            "How many {things} do they have left together?",
            "On Saturday {name} sells {a} {things}, and on Sunday {b} times as many. Of all these {things}, {c} are "
            "brought back. How many {things} stay sold?",
            "One {box} on {name}'s desk holds {a} {things} and a second {box} holds {b} times as many. {name} takes "
            "{c} {things} out. How many {things} are left in the two {boxes}?",
        ),
    ),
    Schema(
        "percent_off",
        "Multiply a b; Divide r1 100; Subtract a r2",
        {"a": range(20, 301, 2), "b": range(5, 51, 5)},
        (
            "A coat costs {a} dollars. {name} gets {b} percent off. How many dollars does {name} pay?",
            "{name} looks at a bike with a price of {a} dollars. Today the shop lowers the price by {b} percent. "
            "What does the bike cost now, in dollars?",
            "{name} has {a} dollars in the bank and spends {b} percent of it on a gift. "
            "How many dollars does {name} still have?",
        ),
        money=True,
    ),
    Schema(
        "wages_shared",
        "Multiply a b; Multiply r1 c; Subtract r2 d; Divide r3 e",
        {"a": FEW, "b": range(4, 26), "c": FEW, "d": MANY, "e": FEW},
        (
            "{name} works {a} hours a day and earns {b} dollars an hour. After {c} days {they} spends {d} dollars on "
            "a coat and splits the rest equally into {e} jars. How many dollars go into each jar?",
            "Each day {name} gives {a} lessons, and each lesson brings {b} dollars. After {c} days {they} pays {d} "
            "dollars for rent and divides the rest equally among {e} children. How many dollars does each child get?",
            "The stall of {name} sells {a} {things} a day at {b} dollars each. After {c} days, {d} dollars of costs "
            "are paid and {e} partners share the remaining money equally. How many dollars does one partner get?",
        ),
        money=True,
    ),
    Schema(
        "two_kinds_change",
        "Multiply a b; Multiply c d; Sum r1 r2; Subtract e r3",
        {"a": FEW, "b": PRICES, "c": FEW, "d": PRICES, "e": BILLS},
        (
            "{name} buys {a} {things} for {b} dollars each and {c} {extras} for {d} dollars each. {They} pays with "
            "{e} dollars. How many dollars of change does {they} get?",
            "In the shop {name} picks {a} {things} that cost {b} dollars each, and {c} {extras} that cost {d} dollars "
            "each. {They} hands over {e} dollars. How much money does {name} get back, in dollars?",
            "{name} needs {a} {things} at {b} dollars each. {They} also needs {c} {extras} at {d} dollars each. "
            "{They} has {e} dollars in a wallet. How many dollars are left after the purchase?",
        ),
        money=True,
    ),
    Schema(
        "come_and_go",
        "Subtract a b; Sum r1 c; Subtract r2 d; Sum r3 e",
        {"a": range(20, 81), "b": SOME, "c": SOME, "d": SOME, "e": SOME},
        (
            "{name} drives a bus with {a} riders. At the first stop {b} get off and {c} get on. At the second stop "
            "{d} get off and {e} get on. How many riders are on the bus now?",
            "The library of {name} has {a} books on a table. In the morning {b} are borrowed and {c} are returned. "
            "In the afternoon {d} are borrowed and {e} are returned. How many books are on the table then?",
            "{name} starts a game with {a} points. First {they} loses {b} points and wins {c} points. Later {they} "
            "loses {d} points and wins {e} points. How many points does {name} have at the end?",
        ),
    ),
    Schema(
        "coupon_shared",
        "Multiply a b; Multiply c d; Sum r1 r2; Subtract r3 e; Divide r4 f",
        {"a": FEW, "b": PRICES, "c": FEW, "d": PRICES, "e": SOME, "f": FEW},
        (
            "{name} buys {a} {things} for {b} dollars each and {c} {extras} for {d} dollars each. A coupon takes {e} "
            "dollars off. The cost is shared equally by {f} friends. How many dollars does each friend pay?",
            "For a party {name} orders {a} {things} that cost {b} dollars each, and {c} {extras} that cost {d} dollars "
            "each. The shop lowers the bill by {e} dollars. Then {f} people split it evenly. How many dollars does "
            "one person pay?",
            "{name} sells {a} {things} at {b} dollars each. {They} also sells {c} {extras} at {d} dollars each. {They} "
            "spends {e} dollars and splits the rest equally into {f} jars. How many dollars go into each jar?",
        ),
        money=True,
    ),
    Schema(
        "orchard",
        "Multiply a b; Multiply r1 c; Subtract r2 d; Divide r3 e; Multiply r4 f",
        {"a": FEW, "b": FEW, "c": SOME, "d": MANY, "e": SOME, "f": FEW},
        (
            "{name} has {a} rows of {b} trees, and each tree gives {c} apples. Then {d} apples are thrown away. The "
            "rest go into baskets of {e}, and each basket sells for {f} dollars. How many dollars does {name} earn?",
            "The workshop of {name} has {a} tables with {b} workers each, and each worker makes {c} {things}. "
            "Of these, {d} break. The others are packed in {boxes} of {e}, and each {box} sells for {f} dollars. "
            "How many dollars is that in total?",
            "{name} unpacks {a} crates of {b} bags, and each bag holds {c} {things}. {They} keeps {d} {things}. The "
            "rest are tied in bundles of {e}, and each bundle sells for {f} dollars. How much money does {they} earn?",
        ),
    ),
    Schema(
        "percent_off_order",
        "Multiply a b; Multiply r1 c; Divide r2 100; Subtract r1 r3; Sum r4 d",
        {"a": FEW, "b": range(4, 41), "c": range(5, 51, 5), "d": SOME},
        (
            "{name} orders {a} {things} for {b} dollars each. A code takes {c} percent off the total. Then shipping "
            "adds {d} dollars. How many dollars does {name} pay?",
            "In the shop {name} picks {a} {things} that cost {b} dollars each. Today the shop lowers the bill by {c} "
            "percent, and wrapping costs {d} dollars more. What does {name} pay, in dollars?",
            "{name} works {a} hours and earns {b} dollars an hour. {They} spends {c} percent of it on food. Then "
            "{they} gets {d} dollars as a gift. How many dollars does {name} have now?",
        ),
        money=True,
    ),
)

WOMEN = "Ada Beth Clara Dina Eva Grace Hana Iris Julia Lucy Mia Nora Rosa Sara Zoe".split()
MEN = "Adam Ben Carl David Eli Felix Hugo Ivan Jack Leo Max Noah Omar Paul Tom".split()
THINGS = "badge bead button candle card cup doll key marble pen ribbon shell stamp sticker toy".split()
BOXES = "bag basket bucket crate jar pack tray".split()
DISTRACTORS = (
    "{name} is {n} years old.",
    "It is {n} degrees outside.",
    "{name} lives at number {n} on Hill Street.",
    "The walk home takes {n} minutes.",
)


def _words(rng: random.Random) -> dict[str, str]:
    women = rng.random() < 0.5
    name, other = rng.sample(WOMEN if women else MEN, 2)
    thing, extra = rng.sample(THINGS, 2)
    box = rng.choice(BOXES)
    they = "she" if women else "he"
    words = {"name": name, "other": other, "they": they, "They": they.capitalize()}
    return words | {"things": f"{thing}s", "extras": f"{extra}s", "box": box, "boxes": f"{box}s"}


def _tell(schema: Schema, numbers: dict[str, Fraction], results: list[Fraction], rng: random.Random) -> str:
    """The question in words; a third of the questions hold a sentence with a number that plays no part."""
    words = _words(rng) | {letter: format_number(number) for letter, number in numbers.items()}
    sentences = rng.choice(schema.phrasings).format(**words).split(". ")
    if rng.random() < 1 / 3:
        unused = [n for n in range(7, 29) if n not in numbers.values() and n not in results]
        distractor = rng.choice(DISTRACTORS).format(**words, n=rng.choice(unused)).removesuffix(".")
        # in front or just before the question, where it cannot come between a noun and its pronoun
        sentences.insert(rng.choice((0, len(sentences) - 1)), distractor)
    return ". ".join(sentences)


def split_of(canonical: str) -> str:
    """ "test" for three tenths of all canonical forms, else "train": no problem is ever in both."""
    return "test" if int(hashlib.sha256(canonical.encode()).hexdigest(), 16) % 10 < 3 else "train"


def _draw(schema: Schema, split: str, seen: set[str], rng: random.Random) -> Problem:
    """One new problem of `schema` in `split`, without its id; adds its canonical form to `seen`."""
    for _ in range(MAX_DRAWS):
        numbers = {letter: Fraction(rng.choice(pool)) for letter, pool in schema.numbers.items()}
        steps, results = schema.solve(numbers)
        canonical = " ".join([schema.name, *(f"{k}={format_number(v)}" for k, v in numbers.items())])
        if canonical in seen or split_of(canonical) != split or not schema.sensible(numbers, results):
            continue
        seen.add(canonical)
        question, details = _tell(schema, numbers, results, rng), {"schema": schema.name, "steps": steps}
        answer = format_number(results[-1])
        return Problem("", "arithmetic", split, schema.level, question, answer, canonical, details)
    raise ValueError(f"arithmetic: no further {split} problem of schema {schema.name} found; ask for fewer problems")


# ---- gold chains


def _argument(number: str) -> str:
    return f'"{number}"' if "/" in number else number  # 1/3 as bare Python would be an operation, not a number


def render_calls(steps: list[Step], answer: str, toolset: str) -> list[str]:
    """The calls of a whole chain in the words of `toolset`."""
    if toolset == "expression":
        shown = [(f"({a})" if "/" in a else a, OPERATIONS[f][0], f"({b})" if "/" in b else b) for f, a, b in steps]
        calls = [f'Calculate("{a} {symbol} {b}")' for a, symbol, b in shown]
    else:
        calls = [f"{function}({_argument(a)}, {_argument(b)})" for function, a, b in steps]
    return [*calls, f"Answer({_argument(answer)})", "Stop()"]


# ---- mistakes: gold calls -> plausible calls that go wrong


def _read(calls: list[str]) -> tuple[list[Link], str]:
    """Links and toolset of a chain as `render_calls` wrote it; an operand equal to an earlier result refers to it."""
    links: list[Link] = []
    results: list[Fraction] = []
    toolset = "steps"
    for call in map(parse_call, calls):
        if call.name == "Calculate":
            toolset = "expression"
            a, symbol, b = (part.strip("()") for part in str(call.args[0]).split())
            function = FUNCTION_OF_SYMBOL[symbol]
        elif call.name in OPERATIONS:
            function, (a, b) = call.name, call.args
        else:
            continue
        values = parse_number(a), parse_number(b)
        refer = [len(results) - 1 - results[::-1].index(v) if v in results else v for v in values]
        links.append((function, refer[0], refer[1]))
        results.append(compute(function, *values))
    return links, toolset


def _follow(links: list[Link]) -> tuple[list[Step], list[Fraction]]:
    """Steps and results of the links, each reference holding what its step really gave. Raises `Refused`."""
    steps, results = [], []
    for function, *operands in links:
        a, b = (results[o] if isinstance(o, int) else o for o in operands)
        results.append(compute(function, a, b))
        steps.append([function, format_number(a), format_number(b)])
    return steps, results


def _mistake(change: Callable[[list[Link], Problem, random.Random], list[Link] | None]) -> Mistake:
    """A mistake that changes links; the later steps carry the wrong result on, and the last one is answered."""

    def mistaken(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
        links, toolset = _read(calls)
        try:
            changed = change(links, problem, rng)
            steps, results = _follow(changed) if changed else ([], [])
        except Refused:
            return None
        return render_calls(steps, format_number(results[-1]), toolset) if steps else None

    return mistaken


def _swap_operands(links: list[Link], problem: Problem, rng: random.Random) -> list[Link] | None:
    places = [i for i, (function, a, b) in enumerate(links) if function in ("Subtract", "Divide") and a != b]
    if not places:
        return None
    place = rng.choice(places)
    function, a, b = links[place]
    return [*links[:place], (function, b, a), *links[place + 1 :]]


def _change_operation(links: list[Link], problem: Problem, rng: random.Random) -> list[Link] | None:
    if not links:
        return None
    place = rng.randrange(len(links))
    function, a, b = links[place]
    return [*links[:place], (rng.choice([f for f in OPERATIONS if f != function]), a, b), *links[place + 1 :]]


def _skip_step(links: list[Link], problem: Problem, rng: random.Random) -> list[Link] | None:
    """Leave out a step before the last; who needs its result takes the step's first operand instead."""
    if len(links) < 2:
        return None
    place = rng.randrange(len(links) - 1)

    def moved(operand: Fraction | int) -> Fraction | int:
        operand = links[place][1] if isinstance(operand, int) and operand == place else operand
        return operand - 1 if isinstance(operand, int) and operand > place else operand

    return [(function, moved(a), moved(b)) for i, (function, a, b) in enumerate(links) if i != place]


def _change_number(links: list[Link], problem: Problem, rng: random.Random) -> list[Link] | None:
    numbers = [parse_number(text.replace(",", "")) for text in _QUESTION_NUMBER.findall(problem.question)]
    places = [(i, j) for i, link in enumerate(links) for j in (1, 2) if isinstance(link[j], Fraction)]
    if not places:
        return None
    place, position = rng.choice(places)
    link = list(links[place])
    others = [n for n in numbers if n != link[position]]
    if not others:
        return None
    link[position] = rng.choice(others)
    return [*links[:place], tuple(link), *links[place + 1 :]]


def _wrong_unit(problem: Problem, calls: list[str], rng: random.Random) -> list[str] | None:
    """Right steps, but the answer is off by a factor of 10 or 100, or is the result of an earlier step."""
    links, toolset = _read(calls)
    if not links:
        return None
    steps, results = _follow(links)
    factor = rng.choice([Fraction(10), Fraction(100), Fraction(1, 10), Fraction(1, 100)])
    answer = rng.choice([results[-1] * factor, *results[:-1]])
    return render_calls(steps, format_number(answer), toolset)


# ---- the task


class Arithmetic(Task):
    """Generated word problems of 2 to 5 steps."""

    name = "arithmetic"
    instruction = "Solve the problem with one call per message. Use numbers of the problem and earlier results."
    toolsets = {"steps": ArithmeticTools, "expression": CalculateTools}
    mistakes = {
        "swapped_operands": _mistake(_swap_operands),
        "wrong_operation": _mistake(_change_operation),
        "skipped_step": _mistake(_skip_step),
        "wrong_number": _mistake(_change_number),
        "wrong_unit": _wrong_unit,
    }

    def generate(self, count: int, split: str, seed: int, levels: Sequence[int] = LEVELS) -> list[Problem]:
        """`count` problems, spread evenly over `levels` (numbers of steps) and their schemas.

        Raises ValueError for an unknown split or level, or where a schema has no further problem.
        """
        check_request(self.name, split, levels, LEVELS)
        rng, problems = random.Random(f"{seed} {split}"), []
        seen: set[str] = set()
        for index in range(count):
            schemas = [schema for schema in SCHEMAS if schema.level == levels[index % len(levels)]]
            problem = _draw(schemas[index // len(levels) % len(schemas)], split, seen, rng)
            problems.append(replace(problem, id=f"{self.name}-{split}-{index + 1:04d}"))
        return problems

    def example(self) -> Problem:
        question = "Lena picks 12 plums and finds 8 more. Her brother eats 5 plums. How many plums are left?"
        steps = [["Sum", "12", "8"], ["Subtract", "20", "5"]]  # a story of no schema, so it is in no split
        return Problem(f"{self.name}-example", self.name, "example", 2, question, "15", "example", {"steps": steps})

    def start(self, problem: Problem, toolset: str | None = None) -> Toolset:
        return self.toolset(toolset)()

    def gold_calls(self, problem: Problem, rng: random.Random | None = None, toolset: str | None = None) -> list[str]:
        """The steps in the order of the text; `rng` swaps the operands of some sums and products."""
        steps = [list(step) for step in problem.details["steps"]]
        for step in steps if rng else []:
            if step[0] in ("Sum", "Multiply") and rng.random() < 0.5:
                step[1:] = step[:0:-1]
        expression = self.toolset(toolset) is CalculateTools
        return render_calls(steps, problem.answer, "expression" if expression else "operations")

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        try:
            return answer is not None and answers_equal(parse_answer(answer), parse_answer(problem.answer))
        except ValueError:
            return False


def check_request(task: str, split: str, levels: Sequence[int], allowed: Sequence[int]) -> None:
    """Raises ValueError, one line, for a split or a level that `task` does not have."""
    if split not in SPLITS:
        raise ValueError(f"{task}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not levels or not set(levels) <= set(allowed):
        expected = ", ".join(map(str, allowed))
        raise ValueError(f"{task}: levels must be some of {expected} (numbers of steps), got {levels!r}")
