"""A Flower grid inside this process: it calls the ClientApp for one node after the other.

No server, no ports, no Ray, no daemon: the same apps as in a deployment, at the cost of a function call. Messages are
Flower's own, with serialized arrays, so what is counted here is what would travel.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity  # the one private name: a Message reads its sender there

logger = logging.getLogger(__name__)

RUN_ID = 1


class InProcessGrid(Grid):
    """One node per client name, in the order of the names; each has its own Context, so its own state between rounds.

    ``context.node_config["client"]`` tells the ClientApp which client it is. A handler that raises becomes an error reply
    with the exception in its reason, as under a SuperLink; what that means for the run is the round loop's decision. A client
    is called when its reply is pulled, so that one reply at a time is held.
    """

    one_by_one = True

    def __init__(self, client_app: ClientApp, clients: Sequence[str], run_config: Mapping | None = None):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SUPERLINK_NODE_ID
        self._client_app = client_app
        self._run = Run.create_empty(RUN_ID)
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        self.contexts = {
            node: Context(RUN_ID, node, {"client": name}, RecordDict(), dict(run_config or {}))
            for node, name in enumerate(sorted(clients), start=SUPERLINK_NODE_ID + 1)
        }

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self._sent += 1
            ids.append(str(self._sent))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply of the first node that has not been called yet; an empty list after the last."""
        ids = [message_id for message_id in message_ids if message_id in self._waiting]
        if not ids:
            return []
        first = min(ids, key=lambda message_id: self._waiting[message_id].metadata.dst_node_id)
        return [self._call(self._waiting.pop(first))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        ids, replies = self.push_messages(messages), []
        while came := self.pull_messages(ids):
            replies += came
        return replies

    def _call(self, message: Message) -> Message:
        try:
            return self._client_app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            logger.exception("a client raised in %s", message.metadata.message_type)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
