"""What all systems share on the server's side."""
