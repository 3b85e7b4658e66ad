"""String rewriting: apply rules such as "x y -> z" to a word until none applies.

Every rule shortens the word, and whichever is applied first, the same word is left at the end. Letters are set apart
by spaces, so that each is a token of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from fcdpo_utils.functions import Refused, tool
from fcdpo_utils.tasks.base import Problem
from fcdpo_utils.tasks.puzzles.base import Puzzle, PuzzleTools, altered, canonical_form, written

LETTERS = "abcdekmprstxyz"


def rewritings(word: str, rules: Sequence[Sequence[str]]) -> list[str]:
    """What one application of one rule, anywhere in `word`, can make of it."""
    places = ((place, rule) for place in range(len(word)) for rule in rules if word.startswith(rule[0], place))
    return [word[:place] + right + word[place + len(left) :] for place, (left, right) in places]


def normal_forms(word: str, rules: Sequence[Sequence[str]]) -> set[str]:
    """Every word that can be left in the end, over all orders of application."""
    left, words = set(), {word}
    while words:
        following = {word: rewritings(word, rules) for word in words}
        left |= {word for word in words if not following[word]}
        words = {shorter for shorters in following.values() for shorter in shorters}
    return left


class RewritingTools(PuzzleTools):
    """The word as it stands, rewritten step by step."""

    def __init__(self, rules: list[list[str]], start: str):
        super().__init__()
        self.rules, self.start = rules, start
        self.word: str | None = None

    @tool('Start("x y x")')
    def Start(self, word: str) -> str:
        """Take the start word of the problem."""
        if word.split() != self.start.split():
            raise Refused(f"the problem does not start with {word}")
        return self._become(self.start)

    @tool('Rewrite("x y", "z")')
    def Rewrite(self, left: str, right: str) -> str:
        """Apply the rule x y -> z to the word."""
        if self.word is None:
            raise Refused("no word yet; use Start")
        if [left, right] not in self.rules:
            raise Refused(f"{left} -> {right} is not a rule of the problem")
        if left not in self.word:
            raise Refused(f"{left} does not occur in {self.word}")
        return self._become(self.word.replace(left, right, 1))

    @tool('Answer("z x")')
    def Answer(self, word: str) -> str:
        """Answer with the word that is left."""
        if not set(word) <= set(LETTERS + " "):
            raise Refused("expected letters with spaces between them")
        return self.record_answer(word)

    def _become(self, word: str) -> str:
        self.word = word
        applicable = [left for left, _ in self.rules if left in word]
        self.derived = None if applicable else word
        if not applicable:
            return f"{word}: no rule applies"
        return f"{word}: {', '.join(applicable)} {'apply' if len(applicable) > 1 else 'applies'}"


def _other_letter(arguments: list[str], problem: Problem, rng: random.Random) -> list[str]:
    left, right = arguments
    return [left, rng.choice(LETTERS.replace(right, ""))]


def _stop_early(problem: Problem, calls: list[str], rng: random.Random) -> list[str]:
    """Answer a word that could still be rewritten."""
    kept = calls[: rng.randint(1, len(calls) - 3)]
    state = RewritingTools(**problem.details)
    word = [state.call(call).text.partition(":")[0] for call in kept][-1]
    return [*kept, written("Answer", word), "Stop()"]


class Rewriting(Puzzle):
    """Two to four rules, applied two to four times."""

    name = "rewriting"
    instruction = "Take the start word, rewrite it rule by rule until no rule applies, answer what is left, stop."
    toolsets = {"rewrite": RewritingTools}
    mistakes = {
        "reversed_rule": altered("Rewrite", lambda arguments, problem, rng: arguments[::-1]),
        "wrong_letter": altered("Rewrite", _other_letter),
        "stopped_early": _stop_early,
    }

    def draw(self, level: int, rng: random.Random) -> Problem | None:
        letters = rng.sample(LETTERS, min(level + 2, 4))
        lefts = {" ".join(rng.choices(letters, k=2)) for _ in range(level + 1)}
        rules = [[left, rng.choice(letters)] for left in sorted(lefts)]
        word = rng.choices(letters, k=rng.randint(1, 3))
        for _ in range(level + 1):  # from the end back to the start
            places = [(place, left) for place, letter in enumerate(word) for left, right in rules if right == letter]
            if not places:
                return None
            place, left = rng.choice(places)
            word[place : place + 1] = left.split()
        return self.pose(level, rng.sample(rules, len(rules)), " ".join(word), letters)

    def pose(self, level: int, rules: list[list[str]], start: str, letters: Sequence[str]) -> Problem | None:
        """The problem, or None where it takes another number of steps or what is left depends on their order."""
        left = normal_forms(start, rules)
        if len(rules) != level + 1 or len(left) > 1 or len(start) - len(min(left)) != 2 * (level + 1):
            return None
        told = ", ".join(f"{a} -> {b}" for a, b in rules)
        question = f"Rules: {told}. Start: {start}. Rewrite until no rule applies. What is left?"
        facts = [*((*a.split(), "->", b) for a, b in rules), ("start", *start.split())]
        return self.problem(level, question, min(left), canonical_form(facts, letters), rules=rules, start=start)

    def example(self) -> Problem:
        return self.pose(2, [["a b", "c"], ["c c", "a"], ["d a", "b"]], "c c d a", "abcd")

    def steps(self, state: RewritingTools, rng: random.Random | None) -> list[str]:
        """The first rule that applies, or one that `rng` picks, until none does."""
        calls = [written("Start", state.start)]
        state.call(calls[0])
        while state.derived is None:
            rules = [rule for rule in state.rules if rule[0] in state.word]
            calls.append(written("Rewrite", *(rng.choice(rules) if rng else rules[0])))
            state.call(calls[-1])
        return calls
