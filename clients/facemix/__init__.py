"""An edge of FaceMix."""
