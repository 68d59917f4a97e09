"""The control socket: other processes look at a running machine and steer it.

``protocol`` is the language, JSON lines; ``sockets`` where sockets stand and who may use them; ``server`` the machine's
side, served by its event loop; ``commands`` what each command does; ``client`` the side of ``pyvmm ctl`` and ``ps``.
"""
