"""Contracts, oracle, subjects, guarded execution, campaign, reduction, findings and the command line."""
