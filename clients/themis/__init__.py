"""A participant of THEMIS."""
