"""What a node is: its settings, its vault, what it has released, what it answers once."""
