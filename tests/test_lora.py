"""LoRA layers by products alone: what PEFT's own give, for those that are plain, and PEFT's own for all others."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small import adapted
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from fcdpo_utils.engine import lora


class Operations(TorchDispatchMode):
    """The names of the operations inside that make a tensor of a given number of rows."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows, self.names = rows, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() == 2 and result.shape[0] == self.rows:
            self.names.add(function.overloadpacket.__name__)
        return result


def layer_of(model: PeftModel) -> nn.Module:
    return next(module for path, module in model.named_modules() if path.endswith("down_proj"))


def passes(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and of whatever is trained."""
    torch.manual_seed(1)  # dropout
    trained = [weight for weight in layer.parameters() if weight.requires_grad]
    output = layer(x)
    return [output, *torch.autograd.grad(output.square().sum(), [x, *trained], allow_unused=True)]


def test_activations_are_multiplied_by_matrices_and_nothing_else(few_words_model: LlamaForCausalLM) -> None:
    layer = layer_of(adapted(few_words_model))
    x = torch.randn(7, layer.in_features, dtype=torch.float64, requires_grad=True)
    with lora.adapters_by_products():
        output = layer(x)
        with Operations(len(x)) as backward:
            output.backward(torch.ones_like(output))
        with Operations(len(x)) as forward:
            layer(x)
    elementwise = {"add", "add_", "mul", "mul_"}
    assert forward.names >= {"mm", "addmm_"} and backward.names >= {"mm", "addmm_"}
    assert not elementwise & (forward.names | backward.names)
    with Operations(len(x)) as of_peft:
        layer(x)
    assert elementwise & of_peft.names  # what is saved


def plain(model: PeftModel) -> None: ...


def with_dropout(model: PeftModel) -> None:
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = nn.Dropout(0.5)


def two_adapters(model: PeftModel) -> None:
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])


def disabled(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


def merged(model: PeftModel) -> None:
    model.merge_adapter()


@pytest.mark.parametrize("change", [plain, with_dropout, two_adapters, disabled, merged])
def test_every_kind_of_layer_gives_what_it_gives_outside(
    few_words_model: LlamaForCausalLM, change: Callable[[PeftModel], None]
) -> None:
    model = adapted(few_words_model)
    change(model)
    layer = layer_of(model)
    x = torch.randn(2, 7, layer.in_features, dtype=torch.float64, requires_grad=True)
    expected = passes(layer, x)
    with lora.adapters_by_products(), lora.adapters_by_products():
        found = passes(layer, x)
    for a, b in zip(found, expected, strict=True):
        assert (a is b is None) or torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_dora_keeps_its_own_pass(few_words_model: LlamaForCausalLM) -> None:
    layer = layer_of(get_peft_model(few_words_model, LoraConfig(target_modules="all-linear", use_dora=True)))
    x = torch.randn(2, 7, layer.in_features, dtype=torch.float64, requires_grad=True)
    expected = layer(x)
    with lora.adapters_by_products():
        assert torch.equal(layer(x), expected)


def test_bfloat16_weights_with_float32_adapters_compute_in_bfloat16(few_words_model: LlamaForCausalLM) -> None:
    layer = layer_of(adapted(few_words_model.to(torch.bfloat16)))
    for weight in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
        weight.data = weight.data.float()
    x = torch.randn(2, 7, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = passes(layer, x)
        with lora.adapters_by_products():
            found = passes(layer, x)
    assert [a.dtype for a in found] == [b.dtype for b in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()
