"""Reference log-probabilities, kept on disk by content: each distinct completion is passed once, ever.

Reused across seeds, processes and runs. Knows nothing of what the values are for.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fcdpo_utils import store
from fcdpo_utils.engine.trees import sequence_log_probs, split_packs
from fcdpo_utils.fingerprint import code_of, fingerprint
from fcdpo_utils.plain import ProgressCallback
from fcdpo_utils.tokens import Tokens


class ReferenceCache:
    """A JSONL file of log-probabilities under one model, `base` being the fingerprint of its weights.

    Lines that are torn, altered or of another model are passed over, so their values are computed again.
    """

    def __init__(self, path: Path, base: str):
        self.path, self.base = path, base
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, float] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
                key, value, check = record["key"], float(record["log_prob"]), record["check"]
            except (ValueError, KeyError, TypeError):
                continue
            if check == self._check(key, value) and math.isfinite(value):
                self.values[key] = value
        if text and not text.endswith("\n"):  # torn: the next line must not continue it
            store.write(path, text + "\n")

    def key(self, tokens: Tokens) -> str:
        return fingerprint({"model": self.base, "ids": tokens.ids, "policy": tokens.policy})

    def _check(self, key: str, value: float) -> str:
        return fingerprint({"key": key, "value": repr(value)})

    def add(self, sequences: Sequence[Tokens], log_probs: Sequence[float]) -> None:
        new = dict(zip(map(self.key, sequences), log_probs, strict=True))
        self.values |= new
        store.append(self.path, ({"key": k, "log_prob": v, "check": self._check(k, v)} for k, v in new.items()))


def weights_fingerprint(model: nn.Module) -> str:
    """Of the names, types and bytes of all weights, an adapter's included, and of the code that passes them."""
    parts = {"code": code_of(sequence_log_probs.__module__)}
    for name, weight in model.state_dict().items():
        if isinstance(weight, Tensor):
            flat = weight.detach().cpu().contiguous().flatten()
            parts[name] = f"{weight.dtype} {store.digest(flat.view(torch.uint8).numpy().tobytes())}"
    return fingerprint(parts)


def reference_log_probs(
    model: nn.Module,
    sequences: Sequence[Tokens],
    pack_tokens: int,
    cache: Path,
    progress: ProgressCallback = lambda done, total: None,
) -> list[float]:
    """Log-probability of each sequence under `model` as it stands, computed where the file `cache` has none."""
    known = ReferenceCache(cache, weights_fingerprint(model))
    missing = [s for s in {known.key(s): s for s in sequences}.values() if known.key(s) not in known.values]
    before, device = len(sequences) - len(missing), next(model.parameters()).device
    with torch.no_grad():
        for tree, part in split_packs(missing, pack_tokens):
            known.add(missing[part], sequence_log_probs(model, tree.to(device)).tolist())
            progress(before + part.stop, len(sequences))
    return [known.values[known.key(sequence)] for sequence in sequences]
