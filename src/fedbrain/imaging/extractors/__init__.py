"""Brain extractors, one module each, so that an edit of one makes only its own volumes anew."""
