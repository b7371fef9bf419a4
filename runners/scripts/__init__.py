"""The programs that a recommendation is handed over as; ``ready_files`` composes them of their sources."""
