"""A policy's network in compiled code, one observation at a time (numba, CPU).

torch needs 30 us for a network of two hidden layers and one row, whatever it multiplies. An account that is traded bar
by bar asks for one row after the other. Most of a row are the features of a bar, which do not depend on the account:
their part of the first layer is a matrix product over many bars (`FeatureProduct`), and the compiled loop adds the
account's part and the other layers (`finish_row`). With the head "band" the network is for the features only: the
product is of all layers, and the loop cuts the held weights to the edges (`into_band`).
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
# Fused multiply-adds are allowed, another order of sums is not: the bits of a row follow from the row alone.
compiled: Any = njit(error_model="numpy", fastmath={"contract"}, boundscheck=False)  # pyright: ignore[reportCallIssue]


HEADS = ("orders", "band")  # compiled as their place here


@dataclass(frozen=True)
class Network:
    """What a compiled loop knows of a policy.

    Attributes:
        head: its place in HEADS.
        numbers: float32. Head "orders": average (C,) and deviation (C,) of the account's inputs, their weights (C, W)
            of the first layer, then weight (in, out) and bias (out,) of each later layer. Head "band": the least
            weights (A,).
        sizes: int64 (n_layers + 1,): C, then each layer's outputs. Head "band": 0 and 2 A.
        clip: bound on normalised inputs.
    """

    head: int
    numbers: Array
    sizes: Array
    clip: float


def network_of(policy: Policy, account: Array) -> Network:
    """The policy without what follows from the features alone.

    Args:
        policy: on the CPU, in float32.
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
    """A function of raw features (M, F): what the policy makes of them without an account, (M, W) or edges (M, 2 A)."""
    if policy.head == "band":
        return lambda rows: torch.cat(policy.band(rows), dim=1)
    return FeatureProduct(policy, features)


class FeatureProduct:
    """The first layer's product with features, bias included: (M, F) -> (M, W)."""

    def __init__(self, policy: Policy, features: slice) -> None:
        """`features` are the columns of an observation that do not depend on the account."""
        weight, self.bias = policy.layers[0]
        self.weight = weight[:, features].contiguous()
        self.average, self.std, self.clip = policy.state_avg[features], policy.state_std[features], policy.clip
        self.products = products_for(weight.device, weight.dtype)

    def __call__(self, features: Tensor) -> Tensor:
        """Raw features; they are normalised here."""
        x = normalize(features, self.average, self.std, self.clip)
        return self.products.affine(x, self.weight, self.bias, is_last=True)


@compiled
def add_product(x: Array, rows: Array, m: int, weight: Array, y: Array) -> None:
    """y (out,) += the sum of x[k] * row rows[k] of weight over k < m; weight is flat (in * out,).

    Four rows a pass: y is read and written less often.
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
    """Action before its tanh, a view of `y`.

    state (S,) is an observation and account (C,) its columns that are not features. numbers, sizes and clip are a
    `Network`'s; the first n_layers + 1 `sizes` count. y, x float32 and rows int64 are scratch, as wide as the widest
    layer and as C; y begins with the features' part of the first layer (W,).
    """
    c, out = len(account), sizes[1]
    for j in range(c):
        value = (state[account[j]] - numbers[j]) / numbers[c + j]
        value = -clip if value < -clip else value  # what is not a number stays so
        x[j], rows[j] = clip if value > clip else value, j
    at = 2 * c
    add_product(x, rows, c, numbers[at : at + c * out], y[:out])
    at += c * out
    for layer in range(1, n_layers):
        m, n_in, out = 0, out, sizes[layer + 1]
        for j in range(n_in):  # ReLU: the weights of inputs that are 0 are not read
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
    """action = tanh(u), both (A,) float32."""
    for a in range(len(action)):
        action[a] = math.tanh(u[a])


@compiled
def into_band(state: Array, edges: Array, least_weight: Array, action: Array) -> None:
    """`drl_agents.policy.action_into_band` for one observation (S,) and edges (2 A,) of its bar."""
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
    """Action (A,) for one observation (S,), of which `finish_row` takes every column; bias (W,) of the first layer."""
    for o in range(len(bias)):
        y[o] = bias[o]
    squash(finish_row(state, columns, numbers, sizes, len(sizes) - 1, clip, y, x, rows), action)


def for_one_row(policy: Policy) -> Callable[[Array], Array]:
    """The policy as a function of one observation (S,) float32 -> action (A,), for loops over a single account.

    Its numbers are the policy's to rounding. Only for the head "orders", on the CPU, in float32.
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
