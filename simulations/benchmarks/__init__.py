"""Speed, as ratios against named rivals: ``make bench``."""
