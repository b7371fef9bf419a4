"""What ``advice.py`` is made of."""
