"""What several test files share: a finished run, the embedded student's tokenizer, tiny models of its vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import fcdpo
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fcdpo_utils.models import embedded_student

torch.set_num_threads(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often a smoke run is killed; thirty take 12 minutes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    """Two layers with grouped-query attention and random weights, in float64, so that equal means equal."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
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
