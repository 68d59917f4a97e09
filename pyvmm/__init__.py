"""pyvmm: a small virtual machine monitor that boots real kernels under KVM.

Python sets up, the kernel moves the data.  The map of the code is in CONTRIBUTING.md; start with
``pyvmm/machine/build.py``, which reads as the table of contents of a boot.
"""

__version__ = "0.1.0"
