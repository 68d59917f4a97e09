"""Machines from Python: :class:`pyvmm.Machine` boots a kernel, watches its console, runs commands in it.

Each machine runs in a process of its own, here or in the lab, and this one speaks to it over a control connection
(:mod:`pyvmm.control.owner`): a thread of ours only takes in what that says, so that the guest never waits for the
user's code, several machines do not hold each other up, and nothing is left when this process is killed.

``machine`` is the whole of it; ``process`` starts the other process, ``link`` speaks with it, ``console`` waits for
texts, ``command`` runs commands, ``end`` says how it went.
"""
