"""Mutation testing: small faults planted in CUDA kernels one at a time, and how many of them the fuzzer finds."""
