"""Compiled forward pass of a policy's network, one observation at a time (numba, CPU).

torch takes 30 us to pass one row through a network with two hidden layers, whatever its size. An account that trades
bar by bar evaluates one row after another. Most inputs are features of a bar, which do not depend on the account. Their
part of the first layer is one matrix product over many bars (`FeatureProduct`), and the compiled loop adds the
account's part and the other layers (`finish_row`). With the head "band" the network reads only features, so the product
covers all layers, and the loop clamps the held weights to the edges (`into_band`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from drl_agents.agents.mlp_gradient import products_for
from drl_agents.policy import Policy, normalize

Array = np.ndarray
# Fused multiply-adds are allowed, but reordered sums are not, so that a row's result depends only on the row.
compiled: Any = njit(error_model="numpy", fastmath={"contract"}, boundscheck=False)  # pyright: ignore[reportCallIssue]


HEADS = ("orders", "band")  # compiled code uses the index


@dataclass(frozen=True)
class Network:
    """Data of a policy that a compiled loop needs.

    Attributes:
        head: index of the head in HEADS.
        numbers: float32. Head "orders": average (C,) and deviation (C,) of the account's inputs, their weights (C, W)
            of the first layer, then weight (in, out) and bias (out,) of each later layer. Head "band": the least
            weights (A,).
        sizes: int64 (n_layers + 1,): C, then the number of outputs of each layer. Head "band": 0 and 2 A.
        clip: bound on normalized inputs.
    """

    head: int
    numbers: Array
    sizes: Array
    clip: float


def network_of(policy: Policy, account: Array) -> Network:
    """Return the policy's network without the part that depends only on features.

    Args:
        policy: a float32 policy on the CPU.
        account: (C,) columns of an observation that are not features.
    """
    head = HEADS.index(policy.head)
    if policy.least_weight is not None:
        return Network(head, policy.least_weight.float().numpy(), np.array([0, 2 * policy.action_dim]), policy.clip)
    columns = torch.from_numpy(account)
    first, *later = policy.layers
    parts = [policy.state_avg[columns], policy.state_std[columns], first[0][:, columns].t().reshape(-1)]
    for weight, bias in later:
        parts += [weight.t().reshape(-1), bias]
    sizes = [len(account), *(len(bias) for _, bias in policy.layers)]
    return Network(head, torch.cat(parts).detach().numpy(), np.array(sizes), policy.clip)


def feature_part(policy: Policy, features: slice) -> Callable[[Tensor], Tensor]:
    """Return a function that maps raw features (M, F) to the account-independent part, (M, W) or edges (M, 2 A)."""
    if policy.head == "band":
        return lambda rows: torch.cat(policy.band(rows), dim=1)
    return FeatureProduct(policy, features)


class FeatureProduct:
    """First layer's product with features, including the bias: (M, F) -> (M, W)."""

    def __init__(self, policy: Policy, features: slice) -> None:
        """`features` are the columns of an observation that do not depend on the account."""
        weight, self.bias = policy.layers[0]
        self.weight = weight[:, features].contiguous()
        self.average, self.std, self.clip = policy.state_avg[features], policy.state_std[features], policy.clip
        self.products = products_for(weight.device, weight.dtype)

    def __call__(self, features: Tensor) -> Tensor:
        """Normalize raw features and return their product."""
        x = normalize(features, self.average, self.std, self.clip)
        return self.products.affine(x, self.weight, self.bias, is_last=True)


@compiled
def add_product(x: Array, rows: Array, m: int, weight: Array, y: Array) -> None:
    """Add the sum of x[k] * weight[rows[k]] over k < m to y (out,); weight is flat (in * out,).

    Four rows per pass reduce reads and writes of y.
    """
    n, whole = len(y), m - m % 4
    for k in range(0, whole, 4):
        a, b, c, d = rows[k] * n, rows[k + 1] * n, rows[k + 2] * n, rows[k + 3] * n
        w0, w1, w2, w3 = weight[a : a + n], weight[b : b + n], weight[c : c + n], weight[d : d + n]
        x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
        for o in range(n):
            y[o] += (x0 * w0[o] + x1 * w1[o]) + (x2 * w2[o] + x3 * w3[o])
    for k in range(whole, m):
        w0, x0 = weight[rows[k] * n : (rows[k] + 1) * n], x[k]
        for o in range(n):
            y[o] += x0 * w0[o]


@compiled
def finish_row(
    state: Array, account: Array, numbers: Array, sizes: Array, n_layers: int, clip: float, y: Array, x: Array,
    rows: Array,
) -> Array:  # fmt: skip
    """Return the action before its tanh, a view of `y`.

    state (S,) is an observation, and account (C,) lists its columns that are not features. numbers, sizes and clip
    belong to a `Network`; only the first n_layers + 1 `sizes` are used. y, x (float32) and rows (int64) are scratch
    buffers, at least as wide as the widest layer and C. On entry y contains the features' part of the first layer (W,).
    """
    c, out = len(account), sizes[1]
    for j in range(c):
        value = (state[account[j]] - numbers[j]) / numbers[c + j]
        value = -clip if value < -clip else value  # NaN stays NaN
        x[j], rows[j] = clip if value > clip else value, j
    at = 2 * c
    add_product(x, rows, c, numbers[at : at + c * out], y[:out])
    at += c * out
    for layer in range(1, n_layers):
        m, n_in, out = 0, out, sizes[layer + 1]
        for j in range(n_in):  # skips the weights of inputs that ReLU set to 0
            x[m], rows[m] = y[j], j
            m += not y[j] <= 0
        bias = numbers[at + n_in * out : at + n_in * out + out]
        for o in range(out):
            y[o] = bias[o]
        add_product(x, rows, m, numbers[at : at + n_in * out], y[:out])
        at += n_in * out + out
    return y[:out]


@compiled
def squash(u: Array, action: Array) -> None:
    """Write action = tanh(u), both (A,) float32."""
    for a in range(len(action)):
        action[a] = math.tanh(u[a])


@compiled
def into_band(state: Array, edges: Array, least_weight: Array, action: Array) -> None:
    """Apply `drl_agents.policy.action_into_band` to one observation (S,) and the edges (2 A,) of its bar."""
    n = len(action)
    for a in range(n):
        weight, lo, hi = state[1 + a], edges[a], edges[n + a]
        target = weight if weight > lo else lo
        target = target if target < hi else hi
        action[a] = np.float32(-1.0) if target < least_weight[a] else target - weight


@compiled
def act_on_row(
    state: Array, columns: Array, bias: Array, numbers: Array, sizes: Array, clip: float, y: Array, x: Array,
    rows: Array, action: Array,
) -> None:  # fmt: skip
    """Return the action (A,) for one observation (S,), using all its columns; bias (W,) is that of the first layer."""
    for o in range(len(bias)):
        y[o] = bias[o]
    squash(finish_row(state, columns, numbers, sizes, len(sizes) - 1, clip, y, x, rows), action)


def for_one_row(policy: Policy) -> Callable[[Array], Array]:
    """Return the policy as a function of one observation (S,) float32 -> action (A,), for loops over a single account.

    Results equal the policy's up to rounding. Only float32 policies with the head "orders" on the CPU are supported.
    """
    columns, bias = np.arange(policy.state_dim), policy.layers[0][1].detach().numpy()
    network = network_of(policy, columns)
    width, clip = int(network.sizes.max()), np.float32(network.clip)
    y, x, rows = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int64)

    def act(state: Array) -> Array:
        action = np.empty(policy.action_dim, np.float32)
        act_on_row(state, columns, bias, network.numbers, network.sizes, clip, y, x, rows, action)
        return action

    return act
