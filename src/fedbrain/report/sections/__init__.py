"""The sections of the study page, a module each: functions of :class:`fedbrain.report.material.Material` that return HTML.

A section that has nothing to show returns an empty text, and is left out with its line of the contents.
"""
