"""The page that tells the study in words and tables."""
