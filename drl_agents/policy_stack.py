"""Several policies acting at once: one batched product a layer, where that gives the bits of one policy at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drl_agents.policy import Policy

PROBES = 8  # random batches on which both ways must agree


class PolicyStack:
    """P policies of equal shapes, stacked: observations (P, R, S) -> actions (P, R, A), R rows for each policy."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        """Copy the weights.

        Raises:
            ValueError: no policies, or policies of unequal shapes.
        """
        shapes = {shape_of(policy) for policy in policies}
        if len(shapes) != 1:
            raise ValueError(f"policies stack when their layers and clips are equal; received {len(shapes)} shapes")
        self.clip = policies[0].clip
        self.average = torch.stack([policy.state_avg for policy in policies])[:, None]  # (P, 1, S)
        self.std = torch.stack([policy.state_std for policy in policies])[:, None]
        # Contiguous (P, in, out): on the CPU the product then adds up in the order of one policy's own.
        self.layers = [
            (
                torch.stack([policy.layers[i][0] for policy in policies]).transpose(1, 2).contiguous(),
                torch.stack([policy.layers[i][1] for policy in policies])[:, None],
            )
            for i in range(len(policies[0].layers))
        ]

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Tensor:
        """(P, R, S) -> (P, R, A); `state` is not modified."""
        x = (state - self.average).div_(self.std).clamp_(-self.clip, self.clip)
        for weight, bias in self.layers[:-1]:
            x = torch.baddbmm(bias, x, weight).relu_()
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, x, weight).tanh_()


def shape_of(policy: Policy) -> tuple[object, ...]:
    """What policies must have in common to be stacked."""
    return policy.clip, tuple(tuple(weight.shape) for weight, _ in policy.layers)


def exact_stack(policies: Sequence[Policy], n_rows: int) -> PolicyStack | None:
    """The policies stacked for `n_rows` rows each, or None where that changes a bit of any action.

    Sums of a product are ordered by its shape and not by its values, so a few random batches tell. Half of the shapes
    of a search pass on the CPU, and those that fail differ by float32 rounding.
    """
    stack = PolicyStack(policies)
    generator = torch.Generator().manual_seed(0)
    for _ in range(PROBES):
        noise = torch.randn((len(policies), n_rows, policies[0].state_dim), generator=generator)
        state = noise.to(policies[0].device) * 2.0 * stack.std + stack.average
        alone = torch.stack([policy(rows) for policy, rows in zip(policies, state, strict=True)])
        if not torch.equal(stack(state), alone):
            return None
    return stack
