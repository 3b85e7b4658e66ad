"""What a run would ask and cost, and whether a task of one's own is whole, before a model is asked anything.

Tokens are those of the embedded student's tokenizer; another model's may be a fifth more or fewer.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fcdpo_utils import store
from fcdpo_utils.episode import prompt, run_calls
from fcdpo_utils.fingerprint import ROOT
from fcdpo_utils.lab.settings import load_settings
from fcdpo_utils.problems import TASKS, Problem, Task
from fcdpo_utils.students import embedded_student
from fcdpo_utils.tasks import own
from fcdpo_utils.tasks.making import make_problems
from fcdpo_utils.tokens import encode_chat

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of sound chains, where none are made yet
LOOKED_AT = 50  # problems of a task whose chains are measured


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(embedded_student())


def check_task(file: Path, what: str = "check") -> bool:
    """Print the prompt that models get, and what is wrong with a file's tasks, a line each. Returns if anything is."""
    wrong = False
    for task in own.load(str(file.absolute())):
        problems, of_rows = task.read()
        faults = [*task.faults()] or of_rows  # a faulty example or function spoils every row
        shown = (problems or [task.example()])[0]
        train, gold = sum(p.split == "train" for p in problems), sum(bool(p.details) for p in problems)
        (asked,), (tokens, *_) = prompt(task, shown), _measured(task, shown)
        print(f"{asked['content']}\n\nThat prompt has {tokens} tokens (embedded student's).")
        print(f"{task.name}: {len(problems)} problems, {train} train, {len(problems) - train} test, {gold} with calls")
        print(*faults, f"{len(faults) or 'no'} faults", sep="\n")
        wrong = wrong or bool(faults)
    return wrong


def plan(profile: str = "cpu", set: Sequence[str] | str = (), run_dir: Path | None = None) -> None:
    """Print chains, tokens and price of stage 02, and how many prompts are mixed: with chains of both kinds, so pairs.

    A chain is taken to be as long as the gold one, or as the worked example's where a problem has none. The share of
    sound chains is that of the run directory's, where there are any.
    """
    settings = load_settings(profile, set)
    options, k, read, written = settings.teacher, settings.teacher.samples, 0.0, 0.0
    _tokenizer()  # its first use says that the student is converted: before the table, not within it
    print(f"{'task':14}{'prompts':>8}{'chains':>9}{'tokens of a prompt':>20}{'read':>14}{'written':>12}")
    for name, task in settings.tasks.items():
        problems = make_problems(name, task.model_copy(update={"test": 0}), settings.seed)
        counts = [_measured(TASKS[name], p) for p in problems[:LOOKED_AT]]
        size, *each = (sum(column) / len(counts) for column in zip(*counts or [(0, 0, 0)], strict=True))
        made = [len(problems) * k * tokens for tokens in each]
        read, written = read + made[0], written + made[1]
        print(f"{name:14}{len(problems):>8}{len(problems) * k:>9}{size:>20.0f}{made[0]:>14,.0f}{made[1]:>12,.0f}")
    cost = (read * options.prices[0] + written * options.prices[1]) / 1e6
    free = ": nothing, for the scripted teacher is no model" * (options.kind == "scripted")
    print(f"price at teacher.prices={list(options.prices)}, of a million tokens{free or f': {cost:.2f}'}")
    print("at most so much: min_per_label, max_chains, max_tokens and max_cost of teacher stop earlier")
    chains = (run_dir or ROOT / "outputs" / Path(profile).stem) / "chains.jsonl"
    sound = [record["sound"] for record in store.iterate(chains)] if chains.exists() else []
    prompts = sum(task.train for task in settings.tasks.values())
    for share in [sum(sound) / len(sound)] if sound else SHARES:
        mixed = prompts * (1 - share**k - (1 - share) ** k)
        print(f"{share:4.0%} of chains sound{' so far' * bool(sound)}: {mixed:.0f} of {prompts} prompts mixed, at best")


def _measured(task: Task, problem: Problem) -> tuple[int, int, int]:
    """Tokens of a prompt, and those that a model reads (the chat again for each call) and writes for one chain."""
    try:
        calls = task.gold_calls(problem)
    except ValueError:  # it has none
        calls = task.gold_calls(replace(task.example(), details=problem.details | task.example().details))
    chain = run_calls(task, problem, calls)
    tokens = encode_chat(_tokenizer(), prompt(task, problem) + chain.messages())
    turns = [i for i, policy in enumerate(tokens.policy) if policy and not tokens.policy[i - 1]]
    return tokens.prompt_length, sum(turns), sum(tokens.policy)
