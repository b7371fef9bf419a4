"""What ``families.py`` is made of."""
