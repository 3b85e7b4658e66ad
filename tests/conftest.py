"""What several test files share: a finished run, the embedded student's tokenizer, tiny models of its vocabulary."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import runs
import torch
from peft import PeftModel
from runs import fcdpo
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fcdpo_utils.settings import StudentSettings
from fcdpo_utils.students import embedded_student, load_student

if TYPE_CHECKING:
    from small import SmokeData

torch.set_num_threads(1)  # tiny products: threads that wait for each other on a busy machine take ten times as long


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often a smoke run is killed; thirty take 12 minutes")
    parser.addoption("--problems", type=int, default=2_000, help="of each generator; 10,000 take five minutes")


def pytest_configure(config: pytest.Config) -> None:
    runs.PROBLEMS = config.getoption("--problems")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "smoke_run" in item.fixturenames:  # tests run in several processes: one of them makes the run, once
            item.add_marker(pytest.mark.xdist_group("smoke"))


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
    return AutoTokenizer.from_pretrained(embedded_student())


@pytest.fixture(scope="session")
def embedded_model() -> LlamaForCausalLM:
    """The embedded student in float32; none may change it."""
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
    return {size: _random_model(size) for size in (49152, 64)}


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> "SmokeData":
    from small import smoke_data_in  # imports all that trains, which most tests need not wait for

    return smoke_data_in(tmp_path_factory.mktemp("smoke_data"))


@pytest.fixture(scope="session")
def load_small_student(
    _random_weights: dict[int, LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]]:
    """`load_student` of a two-layer model of the embedded one's vocabulary, the same each time."""

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


def _random_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).double()
