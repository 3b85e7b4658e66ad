"""The cache of reference log-probabilities: each distinct completion is passed once, and nothing wrong is reused."""

import math
import sqlite3
from contextlib import closing
from functools import wraps
from pathlib import Path

import pytest
import torch
from small import TOKENS
from transformers import LlamaForCausalLM

from fcdpo_utils.engine import references
from fcdpo_utils.engine.references import key_of, reference_log_probs, weights_fingerprint
from fcdpo_utils.engine.trees import TokenTree
from fcdpo_utils.store import StoreError


@pytest.fixture
def student(few_words_model: LlamaForCausalLM) -> LlamaForCausalLM:
    return few_words_model.float()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each pass had."""
    passes, compute = [], references.sequence_log_probs

    @wraps(compute)  # its module's code counts in the fingerprint
    def counted(model: LlamaForCausalLM, tree: TokenTree) -> torch.Tensor:
        passes.append(tree.sequences)
        return compute(model, tree)

    monkeypatch.setattr(references, "sequence_log_probs", counted)
    return passes


def test_values_are_computed_once_per_distinct_completion(
    student: LlamaForCausalLM, tmp_path: Path, computed: list[int]
) -> None:
    said: list[tuple[int, int]] = []
    asked, path = [*TOKENS, TOKENS[0]], tmp_path / "c.sqlite"
    first = reference_log_probs(student, asked, 100, path, lambda *done: said.append(done))
    assert sum(computed) == len(TOKENS)
    assert first[0] == first[-1] and said[-1] == (len(asked), len(asked))
    assert reference_log_probs(student, asked, 100, path) == first and sum(computed) == len(TOKENS)


def test_packs_are_as_long_as_asked(student: LlamaForCausalLM, tmp_path: Path, computed: list[int]) -> None:
    whole = reference_log_probs(student, TOKENS, 10_000, tmp_path / "a.sqlite")
    assert reference_log_probs(student, TOKENS, 12, tmp_path / "b.sqlite") == pytest.approx(whole, abs=1e-5)
    assert computed[0] == len(TOKENS) and len(computed) > 3


def test_a_kill_keeps_what_was_computed(student: LlamaForCausalLM, tmp_path: Path, computed: list[int]) -> None:
    path = tmp_path / "c.sqlite"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reference_log_probs(student, TOKENS, 12, path, stop)
    (first,) = computed
    reference_log_probs(student, TOKENS, 12, path)
    assert 0 < first < len(TOKENS) == sum(computed)


def test_a_value_that_was_not_a_number_is_computed_again(
    student: LlamaForCausalLM, tmp_path: Path, computed: list[int]
) -> None:
    path = tmp_path / "c.sqlite"
    first = reference_log_probs(student, TOKENS, 100, path)
    with closing(sqlite3.connect(path)) as database, database:
        key = key_of(weights_fingerprint(student), TOKENS[0])
        assert database.execute("UPDATE log_probs SET value = ? WHERE key = ?", (math.nan, key)).rowcount == 1
    computed.clear()
    assert reference_log_probs(student, TOKENS, 100, path) == pytest.approx(first, abs=1e-5) and computed == [1]


def test_a_broken_file_is_one_line(student: LlamaForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_text("no database " * 100)
    with pytest.raises(StoreError, match=r"c\.sqlite: file is not a database; delete it"):
        reference_log_probs(student, TOKENS, 100, path)


def test_entries_of_another_model_are_not_used(student: LlamaForCausalLM, tmp_path: Path, computed: list[int]) -> None:
    path = tmp_path / "c.sqlite"
    reference_log_probs(student, TOKENS, 100, path)
    before = weights_fingerprint(student)
    with torch.no_grad():
        student.get_input_embeddings().weight[0, 0] += 1
    assert weights_fingerprint(student) != before
    reference_log_probs(student, TOKENS, 100, path)
    assert sum(computed) == 2 * len(TOKENS)


def test_the_same_numbers_in_another_type_are_another_model(student: LlamaForCausalLM) -> None:
    assert weights_fingerprint(student) != weights_fingerprint(student.to(torch.bfloat16))
