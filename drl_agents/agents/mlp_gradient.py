"""Manual forward and backward pass of a ReLU network, for gradient steps dominated by matrix products.

`torch.autograd` is the reference, and one of the implementations that `AgentPPO` times before its first update. The
manual passes can use oneDNN instead of the BLAS, compute a shared product per bar, apply ReLU and its gradient in
place, and write gradients into the flat buffer of `FlatAdam`. `benchmarks/update.py` measures every implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drl_agents.agents.bar_features import SharedBars
from drl_agents.agents.flat_adam import FlatAdam


class Products:
    """The three matrix products of a linear layer with weight (out, in) on rows (B, in), with torch's BLAS."""

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor, is_last: bool) -> Tensor:
        """Map (B, in) to a new tensor (B, out), with ReLU unless `is_last`."""
        y = torch.addmm(bias, x, weight.t())
        return y if is_last else y.relu_()

    def times(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient (B, in) w.r.t. a layer's input, a new tensor, from (B, out)."""
        return gradient @ weight

    def sums(self, gradient: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """Write the gradients of weight (out, in) and bias (out,) from (B, out) and (B, in)."""
        torch.sum(gradient, 0, out=d_bias)
        torch.mm(gradient.t(), x, out=d_weight)


class OneDnnProducts(Products):
    """Float32 products of oneDNN on the CPU; only the order of summation differs from the BLAS.

    torch uses MKL for float32 products, which runs 256-bit instructions on AMD processors. For 2048 x 512 x 512 on a
    2-core EPYC (Zen 5), MKL reaches 111 and 220 GFLOP/s on one and two threads, and oneDNN 245 and 485. A oneDNN call
    costs about 10 us more, so small products use the BLAS: 64 x 128 x 128 takes 24 us with both, and 256 x 128 x 128
    takes 80 us with MKL and 49 us with oneDNN.
    """

    smallest = 1 << 21  # multiply-adds

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor, is_last: bool) -> Tensor:
        """Map (B, in) to (B, out)."""
        if len(x) * weight.numel() < self.smallest:
            return super().affine(x, weight, bias, is_last)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none" if is_last else "relu", [], "")

    def times(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Map (B, out) to (B, in)."""
        if len(gradient) * weight.numel() < self.smallest:
            return super().times(gradient, weight)
        return torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "")

    def sums(self, gradient: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
        """Map (B, out) and (B, in) to gradients (out, in) and (out,)."""
        if len(x) * d_weight.numel() < self.smallest:
            super().sums(gradient, x, d_weight, d_bias)
            return
        # oneDNN's product for this case copies both arguments; this product is never slower.
        torch.sum(gradient, 0, out=d_bias)
        turned = gradient.t().contiguous()
        d_weight.copy_(torch.ops.mkldnn._linear_pointwise(turned, x.t(), None, "none", [], ""))


PRODUCTS = {"blas": Products, "onednn": OneDnnProducts}


def has_onednn() -> bool:
    """Return True if this machine has 512-bit vectors, for which oneDNN's float32 products were measured."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def products_for(device: torch.device, dtype: torch.dtype) -> Products:
    """Return the products of a forward pass with weights of `dtype` on `device`."""
    return OneDnnProducts() if device.type == "cpu" and dtype == torch.float32 and has_onednn() else Products()


class NetGradient:
    """Forward and backward pass of linear layers with ReLU between them, without autograd."""

    def __init__(self, net: nn.Sequential, flat: FlatAdam) -> None:
        """Write gradients into `flat`, which holds the parameters of `net`.

        Raises:
            ValueError: If the network has layers of a different kind.
        """
        kinds = [type(module) for module in net]
        if len(kinds) < 3 or kinds != [nn.Linear, nn.ReLU] * (len(kinds) // 2) + [nn.Linear]:
            raise ValueError(f"manual gradients support only linear layers with ReLU between them; received {net}")
        self.layers = [(module.weight, module.bias) for module in net if isinstance(module, nn.Linear)]
        self.gradients = [(flat.gradient_of(weight), flat.gradient_of(bias)) for weight, bias in self.layers]
        self.products = Products()
        self.inputs: list[Tensor | SharedBars] = []  # input of each layer, (B, in)

    @torch.no_grad()
    def forward(self, x: Tensor | SharedBars) -> Tensor:
        """Map (B, in) to (B, out), and keep the layers' inputs for `backward`."""
        self.inputs = []
        for weight, bias in self.layers:
            self.inputs.append(x)
            if isinstance(x, SharedBars):
                x = self._affine_of_bars(x, weight, bias)
            else:
                x = self.products.affine(x, weight, bias, is_last=len(self.inputs) == len(self.layers))
        assert isinstance(x, Tensor), "a network has a hidden layer"
        return x

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Write the gradients of all weights, given that of the last `forward`'s result (B, out)."""
        for index in reversed(range(len(self.layers))):
            x, (d_weight, d_bias) = self.inputs[index], self.gradients[index]
            if isinstance(x, SharedBars):
                self._sums_of_bars(gradient, x, d_weight, d_bias)
                continue
            self.products.sums(gradient, x, d_weight, d_bias)
            if index > 0:
                gradient = self.products.times(gradient, self.layers[index][0])
                torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)

    def _affine_of_bars(self, x: SharedBars, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the first layer with one feature product per bar, and add the accounts' part."""
        of_bars = self.products.affine(x.features, x.bars.features_of(weight).contiguous(), bias, is_last=True)
        return of_bars.index_select(0, x.index).addmm_(x.account, x.bars.account_of(weight).t()).relu_()

    def _sums_of_bars(self, gradient: Tensor, x: SharedBars, d_weight: Tensor, d_bias: Tensor) -> None:
        """Write the first layer's gradients from (B, W), summed over each bar's accounts before the product."""
        of_bars = d_bias.new_zeros((len(x.features), len(d_bias))).index_add_(0, x.index, gradient)
        d_features = d_weight.new_empty((len(d_bias), x.bars.width))
        self.products.sums(of_bars, x.features, d_features, d_bias)
        x.bars.features_of(d_weight).copy_(d_features)
        d_account = gradient.t() @ x.account
        d_weight[:, : x.bars.account].copy_(d_account[:, : x.bars.account])
        d_weight[:, x.bars.account + x.bars.width :].copy_(d_account[:, x.bars.account :])
