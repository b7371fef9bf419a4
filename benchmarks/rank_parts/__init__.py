"""Parts of ``benchmarks/ranks.py``."""
