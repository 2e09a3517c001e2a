"""Real participants: an organiser's server, participants' nodes, and the gate between them."""
