"""LoRA layers by matrix products alone; PEFT's own, which keep the adapters, scale and add whole activations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

_PEFT_FORWARD = Linear.forward


class _Adapted(torch.autograd.Function):
    """y = x W' + (x A')(s B)'. x: (rows, n), weight: (m, n) and frozen, as is bias; a: (rank, n), b: (m, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        a, b = a.to(weight.dtype), (b * scale).to(weight.dtype)
        low = x @ a.T
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return nn.functional.linear(x, weight, bias).addmm_(low, b.T)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        slope = grad @ b
        return (grad @ weight).addmm_(slope, a), None, None, slope.T @ x, (grad.T @ low).mul_(ctx.scale), None


def _forward(layer: Linear, x: Tensor, *args: Any, **options: Any) -> Tensor:
    base, active = layer.base_layer, [name for name in layer.active_adapters if name in layer.lora_A]
    plain = type(base) is nn.Linear and not (args or options or layer.lora_variant or layer.disable_adapters)
    if not plain or layer.merged or len(active) != 1 or type(layer.lora_dropout[active[0]]) is not nn.Identity:
        return _PEFT_FORWARD(layer, x, *args, **options)
    a, b, scale = (part[active[0]] for part in (layer.lora_A, layer.lora_B, layer.scaling))
    rows = x.to(base.weight.dtype).flatten(0, -2)
    with torch.autocast(x.device.type, enabled=False):  # as the backward pass: in the type of the frozen weight
        return _Adapted.apply(rows, base.weight, base.bias, a.weight, b.weight, scale).view(*x.shape[:-1], -1)


@contextmanager
def adapters_by_products() -> Iterator[None]:
    """Inside, PEFT's plain linear layers take this way; quantised ones, and any other kind of adapter, their own."""
    before, Linear.forward = Linear.forward, _forward
    try:
        yield
    finally:
        Linear.forward = before
