"""Flower's own programs and their input."""
