"""Generalised advantages against sums done by hand and against the definition, step by step."""

import pytest
import torch

from drl_agents.agents.advantages import bootstrap_values, generalized_advantages, suffix_sums

NAN = float("nan")


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def test_three_steps_by_hand():
    # gamma 0.5, lambda 0.5, values 1 2 3, value after the end 4, rewards 1 each, no end:
    # delta = 1+1-1, 1+1.5-2, 1+2-3 = 1, 0.5, 0; carry 0.25: 0, 0.5, 1.125
    values = column(1.0, 2.0, 3.0)
    no = torch.zeros(3, 1, dtype=torch.bool)
    following = bootstrap_values(values, torch.tensor([4.0], dtype=torch.float64), values * NAN, no, no)
    advantages = generalized_advantages(column(1.0, 1.0, 1.0), values, following, no, 0.5, 0.5)
    assert advantages[:, 0].tolist() == [1.125, 0.5, 0.0]


def test_nothing_follows_a_terminal_step():
    values, done = column(1.0, 2.0, 3.0), torch.tensor([[False], [True], [False]])
    no = torch.zeros_like(done)
    following = bootstrap_values(values, torch.tensor([4.0], dtype=torch.float64), values * NAN, done, no)
    assert following[:, 0].tolist() == [2.0, 0.0, 4.0]
    advantages = generalized_advantages(column(1.0, 1.0, 1.0), values, following, done, 0.5, 0.5)
    # delta = 1, 1-2, 0; the terminal step takes nothing from step 2
    assert advantages[:, 0].tolist() == [1.0 + 0.25 * -1.0, -1.0, 0.0]


def test_a_truncated_step_takes_the_value_of_its_own_last_state_and_no_later_advantage():
    values, done = column(1.0, 2.0, 30.0), torch.tensor([[False], [True], [False]])
    final = column(NAN, 8.0, NAN)
    following = bootstrap_values(values, torch.tensor([4.0], dtype=torch.float64), final, done, done)
    advantages = generalized_advantages(column(1.0, 1.0, 1.0), values, following, done, 0.5, 0.5)
    # delta of step 1 = 1 + 0.5 * 8 - 2 = 3, whatever the next episode's value (30) is
    assert advantages[1, 0].item() == 3.0
    assert advantages[0, 0].item() == 1.0 + 0.25 * 3.0


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 8, 13, 64, 100])
def test_doubling_equals_the_recursion(horizon):
    generator = torch.Generator().manual_seed(horizon)
    x = torch.randn(horizon, 3, generator=generator, dtype=torch.float64)
    carry = torch.rand(horizon, 3, generator=generator, dtype=torch.float64)
    expected, after = torch.empty_like(x), torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(horizon)):
        expected[t] = after = x[t] + carry[t] * after
    before = x.clone(), carry.clone()
    torch.testing.assert_close(suffix_sums(x, carry), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before[0])
    assert torch.equal(carry, before[1])


def test_lambda_one_is_the_discounted_return_minus_the_value():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 20, 4, generator=generator, dtype=torch.float64)
    done = torch.rand(20, 4, generator=generator) < 0.2
    last = torch.randn(4, generator=generator, dtype=torch.float64)
    following = bootstrap_values(values, last, values * NAN, done, torch.zeros_like(done))
    advantages = generalized_advantages(rewards, values, following, done, 0.9, 1.0)
    outcome = last
    for t in reversed(range(20)):
        outcome = rewards[t] + 0.9 * torch.where(done[t], 0.0, outcome)
        torch.testing.assert_close(advantages[t], outcome - values[t])
