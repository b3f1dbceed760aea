"""The merge gate: what a change touches is tested, and timed against the revision that it starts from."""
