"""Studies: many runs as one, over settings, seeds, data sets and systems."""
