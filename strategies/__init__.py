"""Hypothesis strategies that draw cases, and the data model of a case."""
