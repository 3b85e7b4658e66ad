"""Small out-of-domain tasks: do chains learnt on logic and arithmetic help with other puzzles?"""

from fcdpo_utils.tasks.puzzles.base import Puzzle
from fcdpo_utils.tasks.puzzles.knights import KnightsAndKnaves
from fcdpo_utils.tasks.puzzles.ordering import Ordering

PUZZLES: tuple[Puzzle, ...] = (KnightsAndKnaves(), Ordering())
