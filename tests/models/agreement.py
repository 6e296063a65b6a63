"""How far a tensor is from what it should be."""


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())
