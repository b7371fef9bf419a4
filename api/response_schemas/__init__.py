"""The wire, outwards: one file a subject."""
