"""FaceMix: edge–cloud inference on mixed features (paper 003)."""
