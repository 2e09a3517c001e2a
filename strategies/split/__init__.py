"""Split learning: a model cut between devices and cloud, with a shield at the cut."""
