"""Performance on held-out test subjects, with intervals."""
