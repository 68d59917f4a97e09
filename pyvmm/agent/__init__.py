"""The host's side of the agent in the guest (``kernels/agent``): what runs commands there, and how it gets there.

``protocol`` has the frames, ``client`` starts commands over whatever carries bytes, ``running`` is one of those,
``entries`` puts the agent into an initramfs.
"""

from __future__ import annotations

from pyvmm.agent.client import AgentClient, AgentInfo
from pyvmm.agent.entries import Mount, RootSpec, agent_binary, agent_entries
from pyvmm.agent.running import CannotRun, RunningCommand

__all__ = [
    "AgentClient",
    "AgentInfo",
    "CannotRun",
    "Mount",
    "RootSpec",
    "RunningCommand",
    "agent_binary",
    "agent_entries",
]
