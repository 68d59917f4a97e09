"""The host's side of the agent in the guest (``kernels/agent``): what runs commands there, and how it gets there.

``protocol`` has the frames, ``client`` starts commands and attends to them over whatever carries bytes, ``entries``
puts the agent into an initramfs.
"""

from __future__ import annotations

from pyvmm.agent.client import AgentClient, AgentInfo, RunningCommand
from pyvmm.agent.entries import Mount, RootSpec, agent_binary, agent_entries

__all__ = ["AgentClient", "AgentInfo", "Mount", "RootSpec", "RunningCommand", "agent_binary", "agent_entries"]
