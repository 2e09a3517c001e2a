"""Flower's own programs, and what they are given."""
