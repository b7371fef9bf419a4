"""A training as other trainers write it down, both ways. Pure: mappings in, mappings and text out."""
