"""The parts of ``device_check.py``: what is checked on a GPU, and the bench that trials run on."""
