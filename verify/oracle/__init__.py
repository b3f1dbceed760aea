"""The oracle: judges a result exactly where it is determined, with room only where rounding leaves it open."""
