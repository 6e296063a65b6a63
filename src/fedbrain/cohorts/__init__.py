"""From cohort tables to scans, labels, splits and the embedded phantom study."""
