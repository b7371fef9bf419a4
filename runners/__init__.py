"""Execution of candidates in processes of their own."""
