"""Property-based verification of mixture-of-experts (MoE) routing kernels."""

__version__ = "0.1.0"
