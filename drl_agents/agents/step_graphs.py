"""Rollouts on a GPU as replayed graphs: one launch in place of some thousand.

Policy, sampling and environment read and write memory that stays where it is between rollouts (the storage, the
networks' weights, the environment's books), so what one rollout launched is what the next one launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from drl_agents.agents.rollout import Rollout, Take

CHUNK_STEPS = 256  # of a graph: bounds its size for long rollouts


class Graph(Protocol):
    """Work that was recorded once and can be done again."""

    def capture(self, work: Callable[[], None]) -> None:
        """Record what `work` launches, without doing it."""
        ...

    def replay(self) -> None:
        """Do what was recorded."""
        ...


class CudaGraph:
    """torch's graph of a stream on one CUDA or HIP device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], None]) -> None:
        """Record what `work` launches: on a stream of its device, because torch's own is on whichever came first."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream(self.device)
            with torch.cuda.graph(self.graph, stream=stream):
                work()

    def replay(self) -> None:
        """Launch it."""
        self.graph.replay()


class StepGraphs:
    """Graphs of one rollout's steps.

    The first rollout with an environment, a storage and a policy runs eagerly: libraries set themselves up in it,
    which cannot be recorded. The second is recorded and replayed, the later ones are replayed. Another environment,
    storage or policy starts afresh. Where recording fails, the rollouts stay eager.
    """

    def __init__(self, make_graph: Callable[[], Graph]) -> None:
        self.make_graph = make_graph
        self.is_eager = False
        self.made_of: tuple[object, ...] = ()
        self.graphs: list[Graph] | None = None

    def run(self, env: Any, rollout: Rollout, policy: object, take: Take) -> None:
        """Take all steps of `rollout`; `take` is called with some of them in order, eagerly or to be recorded."""
        made_of = (env, rollout, policy)
        is_known = len(self.made_of) == 3 and all(a is b for a, b in zip(made_of, self.made_of, strict=True))
        if not is_known:
            self.made_of, self.graphs, self.is_eager = made_of, None, False
        elif self.graphs is None and not self.is_eager:
            try:
                self.graphs = self._recorded(rollout, take)
            except RuntimeError:  # torch's answer where memory or the driver forbids it; nothing has run
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
