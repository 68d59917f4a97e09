"""Boot tests: kernels x machines x cases, run in parallel, each in a process of its own, and reported.

``matrix`` reads ``pyvmm-test.toml`` into cases, ``run_case`` runs one of them (a spec in, a result out, both of which
can be pickled), ``runner`` runs all of them over any executor, ``progress`` shows it, ``reports`` writes it down.
"""
