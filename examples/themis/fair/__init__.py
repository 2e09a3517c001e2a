"""A fair competition between networks of one's own."""
