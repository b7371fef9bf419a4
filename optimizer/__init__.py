"""Decisions. Pure: no I/O, no clock, no torch, no database."""
