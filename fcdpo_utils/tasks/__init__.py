"""The tasks beside arithmetic, its other toolset and its typical mistakes; to import this package makes them known."""

from fcdpo_utils.problems import register
from fcdpo_utils.tasks import mistakes  # noqa: F401
from fcdpo_utils.tasks.gsm8k import GSM8K
from fcdpo_utils.tasks.logic.task import FirstOrderLogic
from fcdpo_utils.tasks.ordering import Ordering

for task in (FirstOrderLogic(), GSM8K(), Ordering()):
    register(task)
