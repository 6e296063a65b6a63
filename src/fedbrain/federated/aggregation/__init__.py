"""Aggregation rules: pure functions from the clients' updates to the next global model."""

from fedbrain.federated.aggregation.rule import Rule
from fedbrain.registry import build


def build_rule(name: str, **options) -> Rule:
    """The aggregation rule ``name`` of the registry with its options. Raises StudyError for what it does not know."""
    return build("aggregation", name, options)
