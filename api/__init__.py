"""Access for people and programs: HTTP, command line, Python."""
