"""THEMIS: a fair competition on a test set that nobody can label by hand."""
