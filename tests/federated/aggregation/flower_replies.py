"""Replies of clients as Flower's own strategies take them: the independent implementation that rules are compared with."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedbrain.federated.grid import InProcessGrid


def as_replies(models, scans):
    """One reply per model (name -> array), with its number of scans."""
    InProcessGrid(lambda message, context: message, [])  # gives this process the identity that a Message reads
    replies = []
    for model, count in zip(models, scans, strict=True):
        content = {"arrays": as_record(model), "metrics": MetricRecord({"scans": count})}
        replies.append(Message(RecordDict(content), reply_to=Message(RecordDict(), 2, "train")))
    return replies


def as_record(model):
    return ArrayRecord({name: Array(tensor) for name, tensor in model.items()})


class EmptyGrid:
    """Has no nodes: enough for a strategy to be told the current model."""

    def get_node_ids(self):
        return []


def tell_current_model(strategy, model):
    """What Flower's server does before each round; the strategy then waits for no node."""
    strategy.fraction_train = 0.0
    list(strategy.configure_train(1, as_record(model), ConfigRecord(), EmptyGrid()))
