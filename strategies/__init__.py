"""What the organiser or the cloud runs."""
