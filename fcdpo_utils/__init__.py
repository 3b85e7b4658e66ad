"""Teach a small language model to reason with function calls (arXiv 2410.18890).

The files of this folder are the story, to be read in this order. Chains of calls are made,

    calls        text of one call -> a name and literals, or a typed error; nothing is ever evaluated
    numbers      exact numbers, and those that a text states
    tools        annotated Python -> functions that a model may call, their help and JSON schemas
    problems     what a problem and a task are; splits
    arithmetic   one task in full: stories, functions, solutions
    episode      one chain in the making, its prompt, and its labels: solved, sound, recovered
    teacher      who proposes chains
    chains       chains kept and resumed

become pairs and a loss,

    preferences  D*: each chain in one pair; Da: every correct chain of a prompt with every incorrect one
    tokens       whose tokens are whose
    loss         a completion's log-probability; the DPO loss pair by pair, and grouped, as it is trained with

train a student,

    plain        log-probabilities and decoding, one sequence and one token at a time
    weights      which weights a student has, number formats
    students     loading a model; 4 bits
    dataset      prompt groups as a data set
    trainer      TRL's trainer with the grouped loss
    train        one student trained, from preference data to adapter
    onpolicy     in stages: a warm-up, then preferences on the student's own chains, cut where they go wrong

and show what that changed.

    evaluation   how chains end, intervals, paired tests

What all of it stands on:

    settings     one validated object of settings
    store        files that survive a kill
    fingerprint  what is up to date

`engine/` is what makes it fast: the functions of `plain` with the same results, but what chains share is passed once
(`trees`), many chains advance together (`decoding`, `rollout`), and references are kept. The other folders are
satellites: further `tasks/` (logic, GSM8K, FOLIO, drills, a puzzle, your own), names and mistakes, `teachers/` (a
scripted one without a model, language models, the student itself) and how their chains are made within a budget, the
`lab/` with its experiments, `views/` (figures), and the `pipeline/` that runs the notebooks, with `profiles/` of
settings.
"""

import logging
import os
import warnings

# GNU's OpenMP reads it when torch is loaded: how often a waiting thread looks before it sleeps. Beside another busy
# process on two cores, threads that look 300,000 times (the default) took over 200 s for eight short chains, and those
# that look 10,000 times 40 s. On quiet cores, threads that sleep at once take 1.3 times as long to train, 1.6 to write.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from fcdpo_utils import arithmetic, tasks  # known by name from here on
from fcdpo_utils.tasks.own import own_task
from fcdpo_utils.tools import Number, ToolError, Toolset, tool

__all__ = ["Number", "ToolError", "Toolset", "arithmetic", "own_task", "tasks", "tool"]

# A reader of a notebook would take these for our errors. With the pinned versions they say nothing useful: papermill
# shows no widgets, the deprecated name is transformers' own use, and the missing kernel is an optional one.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
