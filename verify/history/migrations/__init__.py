"""Migrations of the history's schema, run by `migrate.upgrade`."""
