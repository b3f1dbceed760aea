"""Runs subjects under NVIDIA's compute-sanitizer and turns its reports into findings."""
