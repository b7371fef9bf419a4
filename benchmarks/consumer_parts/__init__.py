"""Trainings to export, and programs in which the trainers read them."""
