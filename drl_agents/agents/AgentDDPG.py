"""Deep deterministic policy gradient (Lillicrap et al. 2015) on elegantrl 0.3.6's class."""

from __future__ import annotations

from collections.abc import Sequence

from elegantrl.agents.AgentDDPG import AgentDDPG as StockAgentDDPG
from elegantrl.train.config import Config

from drl_agents.agents.AgentTD3 import AgentTD3
from drl_agents.agents.nets import Actor, Critic


class AgentDDPG(AgentTD3, StockAgentDDPG):
    """TD3 with one critic, without target smoothing, and with one actor step per critic step."""

    act_class = Actor
    cri_class = Critic

    def __init__(
        self, net_dims: Sequence[int], state_dim: int, action_dim: int, gpu_id: int = 0, args: Config | None = None
    ) -> None:
        super().__init__(net_dims, state_dim, action_dim, gpu_id=gpu_id, args=args)
        self.policy_noise_std, self.update_freq = 0.0, 1
