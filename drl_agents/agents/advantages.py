"""Generalised advantage estimation over a rollout, as pure functions."""

import torch
from torch import Tensor


def bootstrap_values(
    values: Tensor, last_value: Tensor, final_values: Tensor, done: Tensor, truncated: Tensor
) -> Tensor:
    """Value of what follows each step: the next state, the cut-off state, or nothing.

    Args:
        values: (H, N) value of the state each step started from.
        last_value: (N,) value of the state after the last step.
        final_values: (H, N) value of an episode's last observation; read only where `truncated`.
        done: (H, N) bool, the episode ended with this step, for whatever reason.
        truncated: (H, N) bool, the end was the end of the data or window: the future still has a value.

    Returns:
        (H, N): 0 after a terminal step, `final_values` after a truncated one, else the next row of `values`.
    """
    following = torch.cat((values[1:], last_value[None]))  # (H, N)
    # where(), not a product with a mask: final_values may hold anything, NaN included, outside its mask.
    at_end = torch.where(truncated, final_values, torch.zeros_like(values))  # (H, N)
    return torch.where(done, at_end, following)


def generalized_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, done: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Schulman et al. 2016, equation 16, cut at every end of an episode.

    `adv_t = delta_t + gamma * lambda * (1 - done_t) * adv_{t+1}` with `delta_t = r_t + gamma * next_value_t - value_t`.
    All arguments are (H, N), time first; the result is (H, N).
    """
    delta = rewards + gamma * next_values - values
    carry = (~done).to(delta.dtype) * (gamma * gae_lambda)
    return suffix_sums(delta, carry)


def suffix_sums(x: Tensor, carry: Tensor) -> Tensor:
    """Solve `y_t = x_t + carry_t * y_{t+1}` along the first axis, with nothing after the end.

    By doubling: after the pass with shift s, row t holds the sum over rows t .. t+2s-1 and `carry` the product over
    them. log2(H) passes over whole tensors replace H dependent steps, which matters where each is a kernel launch.
    """
    y, n_rows, shift = x.clone(), x.shape[0], 1
    while shift < n_rows:
        y[:-shift] += carry[: n_rows - shift] * y[shift:]
        n_next = max(n_rows - 2 * shift, 0)
        carry = carry[:n_next] * carry[shift : shift + n_next]
        shift *= 2
    return y
