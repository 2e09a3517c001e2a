"""An owner of disguised images."""
