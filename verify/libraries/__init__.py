"""Adapters that make released routing kernels subjects of the harness.

One module a library, each with ``subjects()``. A library is found as a full install or as bare files in the
folder that ``MOEPROOF_LIBRARIES`` names, laid out as in the wheels; the bare files win where both are there.
Importing an adapter imports no library.

An adapter's code is a snippet: the statements that a finding's script starts with. `adapter.loader` executes
the same text, so a subject and its script can't drift apart. A domain claims what the library's own checks,
dispatch and documentation claim; a claim that isn't plain names its source.
"""

ADAPTERS = ("sglang_kernel", "sglang", "vllm", "flashinfer")
"""The adapters' modules."""
