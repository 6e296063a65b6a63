"""Aggregation rules: pure functions from the clients' updates to the next global model."""

from inspect import signature

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation.rule import Rule
from fedbrain.registry import lookup


def build_rule(name: str, **options) -> Rule:
    """The aggregation rule ``name`` of the registry with its options. Raises StudyError for what it does not know."""
    rule = lookup("aggregation", name)
    known = list(signature(rule).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise StudyError(
            f"aggregation {name}: unknown option {', '.join(unknown)}; known: {', '.join(known) or 'none'}"
        )
    return rule(**options)
