"""Reduction: from a failing case to the smallest one that fails the same check."""
