"""What several test files share: a finished run, the embedded student's tokenizer, tiny models of its vocabulary.

Libraries are imported where they are used: the process that hands out the tests uses none of them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import runs
from runs import fcdpo

if TYPE_CHECKING:
    from peft import PeftModel
    from small import SmokeData
    from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

    from fcdpo_utils.settings import StudentSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="how often a smoke run is killed; ten take eight minutes")
    parser.addoption("--problems", type=int, default=1_000, help="of each generator; 10,000 take five minutes")


def pytest_configure(config: pytest.Config) -> None:
    runs.PROBLEMS = config.getoption("--problems")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    torch.set_num_threads(1)  # tiny products: threads that wait for each other on a busy machine take ten times as long
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "smoke_run" in item.fixturenames:  # tests run in several processes: one of them makes the run, once
            item.add_marker(pytest.mark.xdist_group("smoke"))
    if "PYTEST_XDIST_WORKER" in os.environ:  # short ones last, so that no process waits long for the others' last
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five notebooks under papermill with the profile `smoke`, once for all tests; none may change it."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = fcdpo("run", "--profile", "smoke", "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from fcdpo_utils.students import embedded_student

    return AutoTokenizer.from_pretrained(embedded_student())


@pytest.fixture(scope="session")
def embedded_model() -> LlamaForCausalLM:
    """The embedded student in float32; none may change it."""
    from fcdpo_utils.settings import StudentSettings
    from fcdpo_utils.students import load_student

    return load_student(StudentSettings(dtype="float32"))[0].eval()


@pytest.fixture
def tiny_model(_random_weights: dict[int, LlamaForCausalLM]) -> LlamaForCausalLM:
    """Two layers with grouped-query attention and random weights, in float64, so that equal means equal."""
    return copy.deepcopy(_random_weights[49152])


@pytest.fixture
def few_words_model(_random_weights: dict[int, LlamaForCausalLM]) -> LlamaForCausalLM:
    """The same with 64 tokens: much faster, for what needs no text."""
    return copy.deepcopy(_random_weights[64])


@pytest.fixture(scope="session")
def _random_weights() -> dict[int, LlamaForCausalLM]:
    """By size of the vocabulary."""
    from small import random_llama

    return {size: random_llama(size) for size in (49152, 64)}


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> SmokeData:
    from small import smoke_data_in

    return smoke_data_in(tmp_path_factory.mktemp("smoke_data"))


@pytest.fixture(scope="session")
def load_small_student(
    _random_weights: dict[int, LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]]:
    """`load_student` of a two-layer model of the embedded one's vocabulary, the same each time."""

    import torch
    from peft import PeftModel

    def load(settings: StudentSettings, adapter: Path | None = None, trainable: bool = False):
        model = copy.deepcopy(_random_weights[49152]).float()
        torch.manual_seed(1)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
        return model, tokenizer

    return load


@pytest.fixture
def small_student(load_small_student: Callable[..., tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students of trainings are small ones."""
    monkeypatch.setattr("fcdpo_utils.train.load_student", load_small_student)
    monkeypatch.setattr("fcdpo_utils.train.REFERENCES", tmp_path / "references.sqlite")
