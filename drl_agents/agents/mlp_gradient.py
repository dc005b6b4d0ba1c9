"""Forward and backward of a ReLU network by hand, for gradient steps that spend their time in matrix products.

`torch.autograd` stays the reference. By hand the products can be chosen (oneDNN's in place of the BLAS's, bfloat16 in
place of float32), the first layers of actor and critic are one product, nothing is kept but the activations, ReLU and
its gradient are done in place, and gradients land in the flat buffer of `FlatAdam`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from drl_agents.agents.bar_features import SharedBars
from drl_agents.agents.flat_adam import Flat, FlatAdam
from drl_agents.agents.products_choice import choose

PRODUCTS = ("blas", "onednn", "onednn but sums")


class Products(Protocol):
    """The three matrix products of a linear layer with weight (out, in) on rows (B, in)."""

    takes_strided: bool

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

    takes_strided = True    # rows that lie apart, as fast as others

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
    takes_strided = False   # a hundred times slower

    def __init__(self, sums: bool = True) -> None:
        """Without `sums`, the gradients of weights are the BLAS's: oneDNN needs one argument turned, a copy."""
        self.has_sums = sums

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
        if not self.has_sums or len(x) * d_weight.numel() < self.smallest:
            super().sums(gradient, x, d_weight, d_bias)
            return
        # Its own product for this copies both arguments into layouts of its own; this one is never slower.
        d_bias.copy_(gradient.sum(0))
        turned = gradient.t().contiguous()
        d_weight.copy_(torch.ops.mkldnn._linear_pointwise(turned, x.t(), None, "none", [], ""))


def has_onednn() -> bool:
    """Whether this machine is of the kind on which oneDNN's float32 products were measured: 512-bit vectors."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def products_named(name: str) -> Products:
    """One of PRODUCTS, where this machine has it; else the BLAS's."""
    return OneDnnProducts(sums=name == "onednn") if name != "blas" and has_onednn() else BlasProducts()


def products_for(device: torch.device, dtype: torch.dtype) -> Products:
    """The faster products for weights of `dtype` on `device`."""
    return OneDnnProducts() if device.type == "cpu" and dtype == torch.float32 and has_onednn() else BlasProducts()


class LayerGradient:
    """Forward and backward of linear layers with ReLU between them, without autograd.

    With a `trunk_dtype` below float32 the products of layers with a ReLU are of that type; the weights stay what they
    are, and a last layer without one, whose outputs are means and values, is always computed in theirs.
    """

    def __init__(
        self, layers: Sequence[tuple[Tensor, Tensor]], gradients: Sequence[tuple[Tensor, Tensor]],
        trunk_dtype: torch.dtype | None = None, rectifies: bool = False,
    ) -> None:  # fmt: skip
        """The layers' gradients are written where `gradients` says.

        Args:
            layers: weight (out, in) and bias (out,) of each.
            gradients: the same shapes.
            trunk_dtype: of the products; None is the weights'.
            rectifies: whether a ReLU follows the last layer too.
        """
        self.layers, self.gradients, self.rectifies = layers, gradients, rectifies
        first = layers[0][0]
        self.dtype, self.trunk_dtype = first.dtype, trunk_dtype or first.dtype
        self.products = products_for(first.device, first.dtype)
        self.trunk_products = products_for(first.device, self.trunk_dtype)
        self.inputs: list[Tensor | SharedBars] = []     # of each layer, (B, in)
        self.weights: list[Tensor] = []     # as the products took them

    @torch.no_grad()
    def forward(self, x: Tensor | SharedBars) -> Tensor:
        """(B, in) of the trunk's type -> (B, out). Keeps the layers' inputs for `backward`."""
        self.inputs, self.weights = [], []
        hidden = self.layers if self.rectifies else self.layers[:-1]
        for full_weight, full_bias in hidden:
            weight, bias = full_weight.to(self.trunk_dtype), full_bias.to(self.trunk_dtype)
            self.inputs.append(x)
            self.weights.append(weight)
            if isinstance(x, SharedBars):
                x = self._affine_of_bars(x, weight, bias)
            else:
                x = self.trunk_products.affine(x, weight, bias, is_last=False)
        assert isinstance(x, Tensor), "a network has a hidden layer"
        if self.rectifies:
            return x
        weight, bias = self.layers[-1]
        x = x.to(self.dtype)
        self.inputs.append(x)
        self.weights.append(weight)
        return self.products.affine(x, weight, bias, is_last=True)

    @torch.no_grad()
    def backward(self, gradient: Tensor, into: Tensor | None = None) -> None:
        """Write the gradients of all weights, given that of the last `forward`'s result (B, out), behind its ReLU.

        Args:
            gradient: (B, out).
            into: (B, in), gets the gradient of the input, which is a ReLU's output; None where the input is data.
        """
        for index in reversed(range(len(self.layers))):
            x, (d_weight, d_bias) = self.inputs[index], self.gradients[index]
            is_plain = index == len(self.layers) - 1 and not self.rectifies
            products = self.products if is_plain else self.trunk_products
            if isinstance(x, SharedBars):
                self._sums_of_bars(gradient, x, d_weight, d_bias)
                break
            products.sums(gradient, x, d_weight, d_bias)
            if index > 0 or into is not None:
                gradient = products.times(gradient, self.weights[index])
                torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)
                gradient = gradient.to(self.trunk_dtype)
        if into is not None:
            into.copy_(gradient)
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


def linears_of(net: nn.Sequential) -> list[nn.Linear]:
    """The linear layers of a network that is nothing but them, with ReLU between.

    Raises:
        ValueError: for any other network.
    """
    kinds = [type(module) for module in net]
    if len(kinds) < 3 or kinds != [nn.Linear, nn.ReLU] * (len(kinds) // 2) + [nn.Linear]:
        raise ValueError(f"gradients by hand are for linear layers with ReLU between them; received {net}")
    return [module for module in net if isinstance(module, nn.Linear)]


def tensors_of(linears: Sequence[nn.Linear]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each."""
    return [(linear.weight, linear.bias) for linear in linears]


def lying_order(actor: nn.Sequential, critic: nn.Sequential) -> list[nn.Parameter]:
    """The parameters of both, those of the first layers side by side, as `TwinGradient` wants them in a `FlatAdam`."""
    first, other = linears_of(actor)[0], linears_of(critic)[0]
    joined = [first.weight, other.weight, first.bias, other.bias]
    seen = {id(parameter) for parameter in joined}
    return joined + [p for net in (actor, critic) for p in net.parameters() if id(p) not in seen]


class TwinGradient:
    """Actor and critic on the same rows: their first layers, the widest products, are one."""

    def __init__(
        self, actor: nn.Sequential, critic: nn.Sequential, flat: FlatAdam, trunk_dtype: torch.dtype | None = None
    ) -> None:
        (first, *of_actor), (other, *of_critic) = linears_of(actor), linears_of(critic)
        self.width = first.out_features

        def upper(linears: list[nn.Linear]) -> LayerGradient:
            gradients = [(flat.gradient_of(linear.weight), flat.gradient_of(linear.bias)) for linear in linears]
            return LayerGradient(tensors_of(linears), gradients, trunk_dtype)

        def both(of: Flat) -> tuple[Tensor, Tensor]:
            return flat.joined(of, first.weight, other.weight), flat.joined(of, first.bias, other.bias)

        layer, gradient = both(flat.values), both(flat.gradients)
        self.trunk = LayerGradient([layer], [gradient], trunk_dtype, rectifies=True)
        of_other = [(layer[0][self.width :], layer[1][self.width :])]
        of_first = [(layer[0][: self.width], layer[1][: self.width])]
        self.actor_trunk = LayerGradient(of_first, [], trunk_dtype, rectifies=True)
        self.critic_trunk = LayerGradient(of_other, [], trunk_dtype, rectifies=True)
        self.actor, self.critic = upper(of_actor), upper(of_critic)

    def choose_products(self, n_rows: int) -> str:
        """Take whichever products a timing on this machine found faster for so many rows -> their name."""
        weight = self.trunk.layers[0][0]
        sizes = [weight.shape[1], len(weight), *(len(bias) for _, bias in self.actor.layers)]
        x = torch.randn((n_rows, sizes[0]), generator=torch.Generator().manual_seed(0))

        def one_pass(name: str) -> None:
            self.use_products(name)
            self.backward(*self.forward(x))

        name = choose(sizes, n_rows, {name: functools.partial(one_pass, name) for name in PRODUCTS})
        self.use_products(name)
        return name

    def use_products(self, name: str) -> None:
        """Take the products of this name; see PRODUCTS."""
        for part in (self.trunk, self.actor_trunk, self.critic_trunk, self.actor, self.critic):
            part.products = products_named(name)
            if part.trunk_dtype == part.dtype:
                part.trunk_products = part.products

    def forward(self, x: Tensor | SharedBars) -> tuple[Tensor, Tensor]:
        """(B, S) of the trunk's type -> the actor's (B, A) and the critic's output (B, 1), kept for `backward`."""
        parts = self.trunk.forward(x).split(self.width, dim=1)
        if not self.trunk.trunk_products.takes_strided:
            parts = tuple(part.contiguous() for part in parts)
        return self.actor.forward(parts[0]), self.critic.forward(parts[1])

    @torch.no_grad()
    def backward(self, of_actor: Tensor, of_critic: Tensor) -> None:
        """Write the gradients of all weights, given those of the last `forward`'s results."""
        joined = torch.empty((len(of_actor), 2 * self.width), dtype=self.trunk.trunk_dtype, device=of_actor.device)
        self.actor.backward(of_actor, joined[:, : self.width])
        self.critic.backward(of_critic, joined[:, self.width :])
        self.trunk.backward(joined)

    def means(self, x: Tensor | SharedBars) -> Tensor:
        """(B, S) -> the actor's output (B, A), without keeping anything."""
        return self._alone(self.actor_trunk, self.actor, x)

    def values(self, x: Tensor | SharedBars) -> Tensor:
        """(B, S) -> the critic's output (B, 1), without keeping anything."""
        return self._alone(self.critic_trunk, self.critic, x)

    def _alone(self, trunk: LayerGradient, upper: LayerGradient, x: Tensor | SharedBars) -> Tensor:
        result = upper.forward(trunk.forward(x))
        trunk.forget()
        upper.forget()
        return result
