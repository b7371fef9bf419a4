"""Memory: tables, every SQL statement, legal transitions."""
