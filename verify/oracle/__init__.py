"""The oracle: exact where a result is determined, with room only where rounding leaves it open."""
