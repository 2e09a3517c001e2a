"""Split learning with a guarantee for each image."""
