"""What runs have done, kept in a database: SQLite by default, PostgreSQL for a team."""
