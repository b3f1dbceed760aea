"""Checks that need no reference: how a result must change, or must not, when its input changes in a known way."""
