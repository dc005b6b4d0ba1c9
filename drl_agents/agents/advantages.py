"""Generalized advantage estimation over a rollout, as pure functions."""

import torch
from torch import Tensor


def bootstrap_values(
    values: Tensor, last_value: Tensor, final_values: Tensor, done: Tensor, truncated: Tensor
) -> Tensor:
    """Return the value after each step: of the next state, of the truncated state, or 0.

    Args:
        values: (H, N) value of the state before each step.
        last_value: (N,) value of the state after the last step.
        final_values: (H, N) value of an episode's last observation; read only if `truncated`.
        done: (H, N) bool, the episode ended with this step for any reason.
        truncated: (H, N) bool, the episode ended with the data or window, so the future still has value.

    Returns:
        (H, N): 0 after a terminal step, `final_values` after a truncated one, otherwise the next row of `values`.
    """
    following = torch.cat((values[1:], last_value[None]))  # (H, N)
    # where() instead of a product with the mask, because final_values may contain NaN outside its mask.
    at_end = torch.where(truncated, final_values, torch.zeros_like(values))  # (H, N)
    return torch.where(done, at_end, following)


def generalized_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, done: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Return generalized advantages (Schulman et al. 2016, equation 16), reset at every end of an episode.

    `adv_t = delta_t + gamma * lambda * (1 - done_t) * adv_{t+1}` with `delta_t = r_t + gamma * next_value_t - value_t`.
    All arguments are (H, N), time first; the result is (H, N).
    """
    delta = rewards + gamma * next_values - values
    carry = (~done).to(delta.dtype) * (gamma * gae_lambda)
    return suffix_sums(delta, carry)


def suffix_sums(x: Tensor, carry: Tensor) -> Tensor:
    """Solve `y_t = x_t + carry_t * y_{t+1}` along the first axis, with 0 after the end.

    The method is doubling: after the pass with shift s, row t holds the sum over rows t .. t+2s-1 and `carry` the
    product over them. log2(H) passes over whole tensors replace H dependent steps, which saves kernel launches on a
    GPU.
    """
    y, n_rows, shift = x.clone(), x.shape[0], 1
    while shift < n_rows:
        y[:-shift] += carry[: n_rows - shift] * y[shift:]
        n_next = max(n_rows - 2 * shift, 0)
        carry = carry[:n_next] * carry[shift : shift + n_next]
        shift *= 2
    return y
