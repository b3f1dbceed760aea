"""Lanes: what nightly runs and merge gates test, declared in one TOML file."""
