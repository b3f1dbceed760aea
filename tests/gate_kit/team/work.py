"""How long a call takes at least."""

SPIN_US = 3000
