"""The parts of ``benchmarks/published.py``."""
