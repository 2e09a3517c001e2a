"""Inference at a cloud that sees mixed features only."""
