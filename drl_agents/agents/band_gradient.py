"""STUB until branch gradient arrives: approximate edge gradients of log growth, for development only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from numba import njit


@dataclass(frozen=True)
class BandRecord:
    """What a rollout leaves behind. Step h is chosen at bar ``bar[h]`` and filled at the close of the next one.

    Tensors are on one device. Strides are free: ``lo[:, None].expand(H, N, A)`` serves for accounts that share bars.
    """

    cash: Tensor           # (N,) float64, quote, before the first step
    qty: Tensor            # (N, A) float64, coins, before the first step
    peak: Tensor           # (N,) float64, quote, highest equity of the running episode
    max_drawdown: Tensor   # (N,) float64, fraction, of the running episode
    bar: Tensor            # (H, N) int64, row of `price` at which the order was chosen
    lo: Tensor             # (H, N, A) float, lower edge, fraction of equity
    hi: Tensor             # (H, N, A) float, upper edge, at least `lo`
    action: Tensor         # (H, N, A) float, what the environment was given; -1 also closes a target too small to hold
    filled: Tensor         # (H, N, A) float64, coins: bought positive, sold negative
    done: Tensor           # (H, N) bool, the step ended an episode; the next one begins with a fresh account
    price: Tensor          # (T, A) float64, close
    min_qty: Tensor        # (A,) float64, smallest order in coins
    qty_increment: Tensor  # (A,) float64, 0 where any quantity will do
    trades: Tensor | None = None  # (T, A), 0 where nobody traded the coin in the bar, so that no order filled


@dataclass(frozen=True)
class BandGradient:
    """Gradient of the objective, to be ascended, and how many touches led to no fill."""

    lo: Tensor       # (H, N, A) float64, objective per unit of weight
    hi: Tensor       # (H, N, A) float64
    touched: Tensor  # () float64, share of steps and coins at which the weight was outside its band
    dropped: Tensor  # () float64, share of the touches without a fill; 0 without touches



@njit(cache=True)
def edge_gradients(bar, action, filled, done, cash0, qty0, capital, price, drift, cost, norm):
    H, N, A = action.shape
    dlo = np.zeros((H, N, A))
    dhi = np.zeros((H, N, A))
    w = np.zeros((H + 1, A))
    lam = np.zeros(A)
    da = np.zeros(A)
    for n in range(N):
        cash = cash0[n]
        qty = qty0[n].copy()
        for t in range(H):
            b = bar[t, n]
            e = cash
            for i in range(A):
                e += qty[i] * price[b, i]
            for i in range(A):
                w[t, i] = qty[i] * price[b, i] / e
            for i in range(A):
                f = filled[t, n, i]
                qty[i] += f
                cash -= f * price[b + 1, i] + cost * abs(f) * price[b + 1, i]
            if done[t, n]:
                cash = capital
                qty[:] = 0.0
        lam[:] = 0.0
        for t in range(H - 1, -1, -1):
            b = bar[t, n]
            if done[t, n]:
                lam[:] = 0.0
            R = 0.0
            tr = 0.0
            for i in range(A):
                R += w[t, i] * (price[b + 1, i] / price[b, i] - 1.0)
                if filled[t, n, i] != 0.0:
                    tr += abs(action[t, n, i])
            k = 1.0 - cost * min(tr, 1.0)
            dot = 0.0
            dotd = 0.0
            for i in range(A):
                wd = w[t, i] * price[b + 1, i] / price[b, i] / (1 + R)
                dotd += lam[i] / k * wd
                a = action[t, n, i] if filled[t, n, i] != 0.0 else 0.0
                dot += lam[i] * (wd + a) / k
            for i in range(A):
                a = action[t, n, i]
                s = np.sign(a)
                da[i] = 0.0
                if a != 0.0:
                    da[i] = lam[i] / k + s * (-cost / k + cost * dot / k)
                    if a > 0:
                        dlo[t, n, i] = da[i] * norm
                    else:
                        dhi[t, n, i] = da[i] * norm
            for i in range(A):
                r = price[b + 1, i] / price[b, i] - 1.0
                g = r / (1 + R) - drift[i] + lam[i] / k * (1 + r) / (1 + R) - dotd * r / (1 + R)
                if action[t, n, i] != 0.0:
                    g -= da[i]
                lam[i] = g
    return dlo, dhi


def band_gradient(record, params, *, cost_factor=1.0, as_if_filled=True, mean_return=None, final_equity=None):
    cost = (params.buy_fee_rate + params.slippage_rate) * cost_factor
    drift = torch.zeros(record.action.shape[2], dtype=torch.float64) if mean_return is None else mean_return
    lo, hi = edge_gradients(
        record.bar.numpy(), record.action.numpy(), record.filled.numpy(), record.done.numpy(), record.cash.numpy(),
        record.qty.numpy(), params.initial_capital, record.price.numpy(), drift.numpy(), cost, params.norm_reward,
    )
    touched = record.action != 0
    dropped = (touched & (record.filled == 0)).sum() / touched.sum().clamp(min=1)
    return BandGradient(torch.from_numpy(lo), torch.from_numpy(hi), touched.double().mean(), dropped)
