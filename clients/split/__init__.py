"""A device of split learning."""
