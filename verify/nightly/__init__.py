"""Nightly runs: pinned workers on every GPU, slices of work from a queue on disk, and nothing lost on the way."""
