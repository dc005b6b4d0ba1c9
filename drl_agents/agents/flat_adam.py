"""Adam on one flat buffer per kind of tensor: values, gradients and moments of all parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Flat:
    """One buffer for many parameters, with a view in each parameter's shape."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        first, sizes = parameters[0], [p.numel() for p in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self.views = [part.view_as(p) for part, p in zip(self.flat.split(sizes), parameters, strict=True)]


class FlatAdam:
    """Steps of a `torch.optim.Adam`, each in one call for any number of parameters.

    The optimizer keeps its parameter groups and state, and the state tensors are views of the buffers. Code that saves
    or restores the optimizer needs no change. After tensors are replaced, `attach` copies the new values into the
    buffers.
    """

    def __init__(self, optimizer: torch.optim.Adam, parameters: Sequence[nn.Parameter]) -> None:
        """`parameters` are the optimizer's, in the order of the buffer."""
        assert len(optimizer.param_groups) == 1
        self.optimizer, self.parameters = optimizer, list(parameters)
        self.values, self.gradients = Flat(parameters), Flat(parameters)
        self.moments = {"exp_avg": Flat(parameters), "exp_avg_sq": Flat(parameters)}
        self.n_steps = torch.zeros((), device=parameters[0].device)
        self.attach_values()

    def gradient_of(self, parameter: Tensor) -> Tensor:
        """Return the view of the gradient of `parameter`, in its shape."""
        return self._view_of(parameter, self.gradients)

    def attach_values(self) -> None:
        """Move the parameters into the buffer and keep their values."""
        for p, view in zip(self.parameters, self.values.views, strict=True):
            if p.data_ptr() != view.data_ptr():
                view.copy_(p.data)
                p.data = view

    def attach(self) -> None:
        """Move parameters, gradients and the optimizer's state into the buffers and keep their values."""
        self.attach_values()
        state = self.optimizer.state
        steps = [state[p]["step"] for p in self.parameters if state.get(p)]
        self.n_steps.copy_(steps[0]) if steps else self.n_steps.zero_()
        for i, p in enumerate(self.parameters):
            p.grad = self.gradients.views[i]
            own = state[p]
            for name, flat in self.moments.items():
                view = flat.views[i]
                if name not in own:
                    view.zero_()
                elif own[name].data_ptr() != view.data_ptr():
                    view.copy_(own[name])
                own[name] = view
            own["step"] = self.n_steps

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients to at most `max_norm`, as `clip_grad_norm_` does; return the norm before, a scalar."""
        norm = self.gradients.flat.norm()
        self.gradients.flat.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """Take one step on all parameters."""
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        adam(
            [self.values.flat], [self.gradients.flat], [self.moments["exp_avg"].flat],
            [self.moments["exp_avg_sq"].flat], [], [self.n_steps], fused=True, amsgrad=False, beta1=beta1, beta2=beta2,
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip

    def _view_of(self, parameter: Tensor, flat: Flat) -> Tensor:
        return next(view for view, p in zip(flat.views, self.parameters, strict=True) if p is parameter)
