"""From a T1w head to a normalized brain volume in MNI space: bias field, brain, registration, intensity, quality."""
