"""What adversaries get of a case: one file a system.

A view holds what crossed, what is public, and the adversary's own images. Who judges an attack has
the images behind it, too; attacks never see those.
"""
