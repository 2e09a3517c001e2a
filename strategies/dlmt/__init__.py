"""DLMT: a network learns from disguised images, at the cloud or at their owners."""
