"""Examples, to be run and read from the repository's root; no part of the package."""
