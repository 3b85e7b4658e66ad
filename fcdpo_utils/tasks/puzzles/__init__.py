"""Small out-of-domain tasks: do chains learnt on logic and arithmetic help with other puzzles?"""

from __future__ import annotations

from fcdpo_utils.tasks.puzzles.base import Puzzle
from fcdpo_utils.tasks.puzzles.family import Family
from fcdpo_utils.tasks.puzzles.knights import KnightsAndKnaves
from fcdpo_utils.tasks.puzzles.ordering import Ordering
from fcdpo_utils.tasks.puzzles.rewriting import Rewriting

PUZZLES: tuple[Puzzle, ...] = (KnightsAndKnaves(), Ordering(), Rewriting(), Family())
