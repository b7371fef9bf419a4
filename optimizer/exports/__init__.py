"""A candidate, written in the words of other tools. Pure: returns mappings and text, writes no file."""
