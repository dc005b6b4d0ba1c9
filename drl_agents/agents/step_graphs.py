"""Rollouts on a GPU as replayed graphs, which replace about a thousand launches with one.

Policy, sampling and environment use memory at fixed addresses between rollouts: the storage, the networks' weights and
the account state. Therefore every rollout launches the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from drl_agents.agents.rollout import Rollout, Take

CHUNK_STEPS = 256  # steps per graph, which limits its size for long rollouts


class Graph(Protocol):
    """Recorded work that can be replayed."""

    def capture(self, work: Callable[[], None]) -> None:
        """Record the launches of `work` without running them."""
        ...

    def replay(self) -> None:
        """Run the recorded work."""
        ...


class CudaGraph:
    """Torch graph of a stream on one CUDA or HIP device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], None]) -> None:
        """Record the kernels that `work` launches, on a stream of this graph's device.

        Torch's default capture stream may be on a different device.
        """
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream(self.device)
            with torch.cuda.graph(self.graph, stream=stream):
                work()

    def replay(self) -> None:
        """Launch the graph."""
        self.graph.replay()


class StepGraphs:
    """Graphs of one rollout's steps.

    The first rollout with an environment, a storage and a policy runs eagerly, because libraries initialize during it
    and cannot be recorded. The second rollout is recorded and replayed, and later ones are replayed. With a different
    environment, storage or policy, this starts again. If recording fails, rollouts stay eager.
    """

    def __init__(self, make_graph: Callable[[], Graph]) -> None:
        self.make_graph = make_graph
        self.is_eager = False
        self.made_of: tuple[object, ...] = ()
        self.graphs: list[Graph] | None = None

    def run(self, env: Any, rollout: Rollout, policy: object, take: Take) -> None:
        """Run all steps of `rollout`; `take` is called with consecutive steps, eagerly or while recording."""
        made_of = (env, rollout, policy)
        is_known = len(self.made_of) == 3 and all(a is b for a, b in zip(made_of, self.made_of, strict=True))
        if not is_known:
            self.made_of, self.graphs, self.is_eager = made_of, None, False
        elif self.graphs is None and not self.is_eager:
            try:
                self.graphs = self._recorded(rollout, take)
            except RuntimeError:  # raised if memory or the driver prevents capture; nothing has run
                self.is_eager = True
        if self.graphs is None:
            take(rollout.steps)
            return
        for graph in self.graphs:
            graph.replay()

    def _recorded(self, rollout: Rollout, take: Take) -> list[Graph]:
        graphs = []
        for first in range(0, len(rollout.steps), CHUNK_STEPS):
            graph, steps = self.make_graph(), rollout.steps[first : first + CHUNK_STEPS]
            graph.capture(lambda steps=steps: take(steps))
            graphs.append(graph)
        return graphs
