"""The engine room: the same functions as `fcdpo_utils.plain`, with the same results, fast."""

from fcdpo_utils.engine.memory import fit
from fcdpo_utils.engine.references import reference_log_probs
from fcdpo_utils.engine.rollout import rollout
from fcdpo_utils.engine.trees import log_probs, while_training

__all__ = ["fit", "log_probs", "reference_log_probs", "rollout", "while_training"]
