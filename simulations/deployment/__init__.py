"""Real participants: an organiser's server, participants' nodes, and what stands between them."""
