"""Agents, each a subclass of elegantrl 0.3.6's class of the same name."""

from drl_agents.agents.AgentA2C import AgentA2C
from drl_agents.agents.AgentBand import AgentBand
from drl_agents.agents.AgentBase import AgentBase
from drl_agents.agents.AgentDDPG import AgentDDPG
from drl_agents.agents.AgentPPO import AgentPPO
from drl_agents.agents.AgentSAC import AgentSAC
from drl_agents.agents.AgentTD3 import AgentTD3

AGENTS: dict[str, type[AgentBase]] = {
    "ppo": AgentPPO,
    "a2c": AgentA2C,
    "band": AgentBand,
    "sac": AgentSAC,
    "td3": AgentTD3,
    "ddpg": AgentDDPG,
}

__all__ = ["AGENTS", "AgentA2C", "AgentBand", "AgentBase", "AgentDDPG", "AgentPPO", "AgentSAC", "AgentTD3"]
