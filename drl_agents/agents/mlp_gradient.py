"""Forward and backward of a ReLU network by hand, for gradient steps that spend their time in matrix products.

`torch.autograd` stays the reference; both are given the same loss, so that what is learned is written once. By hand
the products can be chosen (oneDNN's in place of the BLAS's, bfloat16 in place of float32), nothing is kept but the
activations, ReLU and its gradient are done in place, and gradients land in one flat buffer whose norm is one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from drl_agents.agents.bar_features import SharedBars


class Products(Protocol):
    """The three matrix products of a linear layer with weight (out, in) on rows (B, in)."""

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor, is_last: bool) -> Tensor:
        """(B, in) -> (B, out), a new tensor; with ReLU unless `is_last`."""
        ...

    def times(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """(B, out) -> (B, in), a new tensor: the gradient of a layer's input."""
        ...

    def sums(self, gradient: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """(B, out) and (B, in) -> the gradients of the weight (out, in) and the bias (out,), written."""
        ...


class BlasProducts:
    """torch's own, on any device and dtype."""

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor, is_last: bool) -> Tensor:
        """(B, in) -> (B, out)."""
        y = torch.addmm(bias, x, weight.t())
        return y if is_last else y.relu_()

    def times(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """(B, out) -> (B, in)."""
        return gradient @ weight

    def sums(self, gradient: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """(B, out), (B, in) -> (out, in), (out,)."""
        d_bias.copy_(gradient.sum(0))
        if d_weight.dtype == gradient.dtype:
            torch.mm(gradient.t(), x, out=d_weight)
        else:
            d_weight.copy_(gradient.t() @ x)


class OneDnnProducts(BlasProducts):
    """oneDNN's float32 products on the CPU. The values are float32's throughout; only the order of sums differs.

    torch hands float32 products to MKL, which keeps AMD processors on 256-bit instructions. 2048 x 512 x 512 on a
    2-core EPYC (Zen 5): MKL 111 and 220 GFLOP/s on one and two threads, oneDNN 245 and 485. A call costs about 10 us
    more, so small products stay with the BLAS: 64 x 128 x 128 takes either 24 us, 256 x 128 x 128 MKL 80 and oneDNN 49.
    """

    smallest = 1 << 21      # multiply-adds

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor, is_last: bool) -> Tensor:
        """(B, in) -> (B, out)."""
        if len(x) * weight.numel() < self.smallest:
            return super().affine(x, weight, bias, is_last)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none" if is_last else "relu", [], "")

    def times(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """(B, out) -> (B, in)."""
        if len(gradient) * weight.numel() < self.smallest:
            return super().times(gradient, weight)
        return torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "")

    def sums(self, gradient: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """(B, out), (B, in) -> (out, in), (out,)."""
        if len(x) * d_weight.numel() < self.smallest:
            super().sums(gradient, x, d_weight, d_bias)
            return
        pair = torch.ops.aten.mkldnn_linear_backward_weights(gradient.to_mkldnn(), x.to_mkldnn(), d_weight, True)
        d_weight.copy_(pair[0])
        d_bias.copy_(pair[1])


def has_onednn() -> bool:
    """Whether this machine is of the kind on which oneDNN's float32 products were measured: 512-bit vectors."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def products_for(device: torch.device, dtype: torch.dtype) -> Products:
    """The faster products for weights of `dtype` on `device`."""
    return OneDnnProducts() if device.type == "cpu" and dtype == torch.float32 and has_onednn() else BlasProducts()


class FlatGradients:
    """One buffer for the gradients of many parameters, of which each parameter's `grad` is a view."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype,
                                device=parameters[0].device)  # fmt: skip
        parts = self.flat.split([p.numel() for p in parameters])
        self.views = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]

    def of(self, parameter: Tensor) -> Tensor:
        """The gradient of `parameter`, of its shape."""
        return next(view for view, p in zip(self.views, self.parameters, strict=True) if p is parameter)

    def attach(self) -> None:
        """Make the views the parameters' gradients."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view

    def clip(self, max_norm: float) -> Tensor:
        """Scale to at most `max_norm` as `torch.nn.utils.clip_grad_norm_` does -> the norm before, a scalar."""
        norm = self.flat.norm()
        self.flat.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


class MlpGradient:
    """Forward and backward of `net`, linear layers with ReLU between them, without autograd.

    With a `trunk_dtype` below float32 the hidden layers' products are of that type; the weights stay what they are, and
    the last layer, whose outputs are means and values, is always computed in theirs.
    """

    def __init__(self, net: nn.Sequential, gradients: FlatGradients, trunk_dtype: torch.dtype | None = None) -> None:
        kinds = [type(module) for module in net]
        if kinds != [nn.Linear, nn.ReLU] * (len(kinds) // 2) + [nn.Linear]:
            raise ValueError(f"gradients by hand are for linear layers with ReLU between them; received {net}")
        self.linears = [module for module in net if isinstance(module, nn.Linear)]
        self.gradients = [(gradients.of(layer.weight), gradients.of(layer.bias)) for layer in self.linears]
        first = self.linears[0].weight
        self.dtype, self.trunk_dtype = first.dtype, trunk_dtype or first.dtype
        self.products = products_for(first.device, first.dtype)
        self.trunk_products = products_for(first.device, self.trunk_dtype)
        self.inputs: list[Tensor | SharedBars] = []     # of each layer, (B, in)
        self.weights: list[Tensor] = []     # as the products took them

    @torch.no_grad()
    def forward(self, x: Tensor | SharedBars) -> Tensor:
        """(B, S) of the trunk's type -> (B, out). Keeps the layers' inputs for `backward`."""
        self.inputs, self.weights = [], []
        for layer in self.linears[:-1]:
            weight, bias = layer.weight.to(self.trunk_dtype), layer.bias.to(self.trunk_dtype)
            self.inputs.append(x)
            self.weights.append(weight)
            if isinstance(x, SharedBars):
                x = self._affine_of_bars(x, weight, bias)
            else:
                x = self.trunk_products.affine(x, weight, bias, is_last=False)
        assert isinstance(x, Tensor), "a network has a hidden layer"
        last = self.linears[-1]
        x = x.to(self.dtype)
        self.inputs.append(x)
        self.weights.append(last.weight)
        return self.products.affine(x, last.weight, last.bias, is_last=True)

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Write the gradients of all weights, given that of the last `forward`'s result (B, out)."""
        for index in reversed(range(len(self.linears))):
            x, (d_weight, d_bias) = self.inputs[index], self.gradients[index]
            products = self.products if index == len(self.linears) - 1 else self.trunk_products
            if isinstance(x, SharedBars):
                self._sums_of_bars(gradient, x, d_weight, d_bias)
                break
            products.sums(gradient, x, d_weight, d_bias)
            if index > 0:       # the first layer's input is data
                gradient = products.times(gradient, self.weights[index])
                torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)
                gradient = gradient.to(self.trunk_dtype)
        self.forget()

    def forget(self) -> None:
        """Let go of what the last `forward` kept."""
        self.inputs, self.weights = [], []

    def _affine_of_bars(self, x: SharedBars, weight: Tensor, bias: Tensor) -> Tensor:
        """First layer: the features' product once a bar, the accounts' added."""
        of_bars = self.trunk_products.affine(x.features, x.bars.features_of(weight).contiguous(), bias, is_last=True)
        return of_bars.index_select(0, x.index).addmm_(x.account, x.bars.account_of(weight).t()).relu_()

    def _sums_of_bars(self, gradient: Tensor, x: SharedBars, d_weight: Tensor, d_bias: Tensor) -> None:
        """Gradients of the first layer from (B, W), summed over a bar's accounts before the product."""
        of_bars = d_bias.new_zeros((len(x.features), len(d_bias))).index_add_(0, x.index, gradient.to(d_bias.dtype))
        d_features = torch.empty((len(d_bias), x.bars.width), dtype=d_weight.dtype, device=d_weight.device)
        self.trunk_products.sums(of_bars.to(self.trunk_dtype), x.features, d_features, d_bias)
        x.bars.features_of(d_weight).copy_(d_features)
        d_account = (gradient.t() @ x.account).to(d_weight.dtype)
        d_weight[:, : x.bars.account].copy_(d_account[:, : x.bars.account])
        d_weight[:, x.bars.account + x.bars.width :].copy_(d_account[:, x.bars.account :])
