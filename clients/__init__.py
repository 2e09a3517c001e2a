"""What a participant runs: it owns private data, a private model, keys."""
