"""Reference log-probabilities, kept on disk by content: each distinct completion is passed once, whoever asks."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from fcdpo_utils import store
from fcdpo_utils.engine.trees import sequence_log_probs, split_packs
from fcdpo_utils.fingerprint import code_of, fingerprint
from fcdpo_utils.plain import ProgressCallback
from fcdpo_utils.tokens import Tokens


def key_of(base: str, tokens: Tokens) -> str:
    """What a sequence's value is kept under; `base`: fingerprint of the model's weights."""
    return fingerprint({"model": base, "ids": tokens.ids, "policy": tokens.policy})


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
    """Log-probability of each sequence under `model` as it stands, computed where the SQLite file `cache` has none."""
    base, device = weights_fingerprint(model), next(model.parameters()).device
    keys = [key_of(base, sequence) for sequence in sequences]
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(cache)) as database, torch.no_grad():
            database.execute("CREATE TABLE IF NOT EXISTS log_probs (key TEXT PRIMARY KEY, value REAL)")
            known = dict(database.execute("SELECT key, value FROM log_probs WHERE value IS NOT NULL"))  # NaN is NULL
            missing = {key: sequence for key, sequence in zip(keys, sequences, strict=True) if key not in known}
            names, before = [*missing], len(sequences) - len(missing)
            for tree, part in split_packs([*missing.values()], pack_tokens):
                new = [*zip(names[part], sequence_log_probs(model, tree.to(device)).tolist(), strict=True)]
                with database:  # a transaction: a kill leaves all of it or nothing
                    database.executemany("INSERT OR REPLACE INTO log_probs VALUES (?, ?)", new)
                known |= new
                progress(before + part.stop, len(sequences))
    except sqlite3.Error as error:
        raise store.StoreError(f"cannot use {cache}: {error}; delete it to compute its values again") from None
    return [known[key] for key in keys]
