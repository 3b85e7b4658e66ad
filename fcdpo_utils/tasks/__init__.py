"""The tasks beside arithmetic, its other toolset and its typical mistakes; to import this package makes them known."""

from fcdpo_utils.problems import TASKS, register
from fcdpo_utils.tasks import mistakes, ordering, own  # noqa: F401
from fcdpo_utils.tasks.drills import Drills
from fcdpo_utils.tasks.folio import FOLIO
from fcdpo_utils.tasks.gsm8k import GSM8K
from fcdpo_utils.tasks.gsm_symbolic import GSMSymbolic
from fcdpo_utils.tasks.logic.task import FirstOrderLogic

for task in (FirstOrderLogic(), GSM8K(), GSMSymbolic(), FOLIO(), Drills()):
    register(task)
own.SHIPPED.update(TASKS)
