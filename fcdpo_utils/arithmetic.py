"""Arithmetic word problems: generated stories, the number tools that solve them, and the check of an answer.

Wording and gold steps of a problem both come from one `Schema`, which is read from `arithmetic.yaml`. Writes nothing;
knows nothing of prompts, models or labels. `tasks` adds typical mistakes and another toolset.
"""

import operator
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import yaml

from fcdpo_utils.numbers import MAX_MAGNITUDE, answers_equal, format_number, parse_number
from fcdpo_utils.problems import Problem, Task, check_request, register, split_of
from fcdpo_utils.tools import Number, ToolError, Toolset, tool

LEVELS = (2, 3, 4, 5)
MAX_DRAWS = 20_000

Step = list[str]  # [function, a, b], numbers as text: JSON-able

OPERATIONS: dict[str, tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    "Sum": ("+", operator.add),
    "Subtract": ("-", operator.sub),
    "Multiply": ("*", operator.mul),
    "Divide": ("/", operator.truediv),
}
_ANSWER = re.compile(
    r"(?P<sign>[+-]?)\$?(?P<number>-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*|/\d+)?|-?\.\d+) ?%?(?: ?[A-Za-z]+)?\.?",
    re.ASCII,
)


def compute(function: str, a: Fraction, b: Fraction) -> Fraction:
    """The exact result of one operation. Raises `ToolError` for a division by zero or a result beyond 1e15."""
    if function == "Divide" and b == 0:
        raise ToolError("cannot divide by zero")
    result = OPERATIONS[function][1](a, b)
    if abs(result) > MAX_MAGNITUDE or result.denominator > MAX_MAGNITUDE:
        raise ToolError(f"the result is beyond {MAX_MAGNITUDE}")
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


# ---- tools


class NumberTools(Toolset, ABC):
    """What all toolsets share: the answer. They differ in how they `write` a step."""

    @staticmethod
    @abstractmethod
    def write(function: str, a: str, b: str) -> str:
        """The call of one step."""

    @tool("Answer(36)")
    def Answer(self, value: Number) -> str:
        """Record the final answer."""
        self.answer = format_number(value)
        return "Answer recorded"


class ArithmeticTools(NumberTools):
    """One operation per call."""

    @staticmethod
    def write(function: str, a: str, b: str) -> str:
        return f"{function}({_argument(a)}, {_argument(b)})"

    say = staticmethod(format_number)  # what a call returns; a subclass may say more

    @tool("Sum(2, 3)")
    def Sum(self, a: Number, b: Number) -> str:
        """Add a and b."""
        return self.say(compute("Sum", a, b))

    @tool("Subtract(9, 4)")
    def Subtract(self, a: Number, b: Number) -> str:
        """Take b away from a."""
        return self.say(compute("Subtract", a, b))

    @tool("Multiply(2, 3)")
    def Multiply(self, a: Number, b: Number) -> str:
        """Multiply a by b."""
        return self.say(compute("Multiply", a, b))

    @tool("Divide(8, 2)")
    def Divide(self, a: Number, b: Number) -> str:
        """Divide a by b."""
        return self.say(compute("Divide", a, b))


# ---- stories


@dataclass(frozen=True)
class Schema:
    """One kind of story as `arithmetic.yaml` tells it; `numbers` are the values that each letter may have."""

    name: str
    steps: str
    numbers: dict[str, Sequence[Fraction]]
    phrasings: Sequence[str]
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


def load_stories(path: Path) -> tuple[list[Schema], dict[str, list[str]]]:
    """The schemas and the words of a file such as `arithmetic.yaml`.

    Raises ValueError, one line that names the story, where one lacks a field or has an unknown field or range.
    """
    data, schemas = yaml.safe_load(path.read_text(encoding="utf-8")), []
    for story in data["stories"]:
        try:
            numbers = {letter: _values(*data["ranges"].get(str(r), r)) for letter, r in story["numbers"].items()}
            schemas.append(Schema(**story | {"numbers": numbers}))
            schemas[-1].solve({letter: values[0] for letter, values in numbers.items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name}: cannot read the story {story.get('name')!r}: {error!r}") from None
    return schemas, data["words"]


def _values(first: float, last: float, step: float = 1) -> list[Fraction]:
    return [Fraction(first) + number * Fraction(step) for number in range(int((last - first) / step) + 1)]


SCHEMAS, WORDS = load_stories(Path(__file__).with_suffix(".yaml"))


def _words(rng: random.Random) -> dict[str, str]:
    women = rng.random() < 0.5
    name, other = rng.sample(WORDS["women" if women else "men"], 2)
    thing, extra = rng.sample(WORDS["things"], 2)
    box = rng.choice(WORDS["boxes"])
    they = "she" if women else "he"
    words = {"name": name, "other": other, "they": they, "They": they.capitalize()}
    return words | {"things": f"{thing}s", "extras": f"{extra}s", "box": box, "boxes": f"{box}s"}


def _tell(schema: Schema, numbers: dict[str, Fraction], results: list[Fraction], rng: random.Random) -> str:
    """The question in words; a third of the questions hold a sentence with a number that plays no part."""
    words = _words(rng) | {letter: format_number(number) for letter, number in numbers.items()}
    sentences = rng.choice(schema.phrasings).format(**words).split(". ")
    if rng.random() < 1 / 3:
        unused = [n for n in range(7, 29) if n not in numbers.values() and n not in results]
        distractor = rng.choice(WORDS["distractors"]).format(**words, n=rng.choice(unused)).removesuffix(".")
        # in front or just before the question, where it cannot come between a noun and its pronoun
        sentences.insert(rng.choice((0, len(sentences) - 1)), distractor)
    return ". ".join(sentences)


def _draw(schema: Schema, split: str, seen: set[str], rng: random.Random) -> Problem:
    """One new problem of `schema` in `split`, without its id; adds its canonical form to `seen`."""
    for _ in range(MAX_DRAWS):
        numbers = {letter: rng.choice(values) for letter, values in schema.numbers.items()}
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


def render_calls(steps: list[Step], answer: str, tools: type[NumberTools]) -> list[str]:
    """The calls of a whole chain in the words of `tools`."""
    return [*(tools.write(*step) for step in steps), f"Answer({_argument(answer)})", "Stop()"]


# ---- the task


class Arithmetic(Task):
    """Generated word problems of 2 to 5 steps."""

    name = "arithmetic"
    instruction = "Solve the problem with one call per message. Use numbers of the problem and earlier results."
    toolsets: ClassVar[dict[str, type[NumberTools]]] = {"steps": ArithmeticTools}

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

    def solution(self, problem: Problem, rng: random.Random | None = None) -> list[str]:
        """The steps in the order of the text; `rng` swaps the operands of some sums and products."""
        steps = [list(step) for step in problem.details["steps"]]
        for step in steps if rng else []:
            if step[0] in ("Sum", "Multiply") and rng.random() < 0.5:
                step[1:] = step[:0:-1]
        return render_calls(steps, problem.answer, self.toolset(problem.toolset))

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        try:
            return answer is not None and answers_equal(parse_answer(answer), parse_answer(problem.answer))
        except ValueError:
            return False


register(Arithmetic())
