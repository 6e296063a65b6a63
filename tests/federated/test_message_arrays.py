"""Arrays in messages: the same bytes as Flower writes, read where they lie; sums by blocks to the bits of whole tensors."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedbrain.federated.aggregation.averages import FedAvg
from fedbrain.federated.aggregation.optimizers import FedAdam, FedAvgM, FedYogi
from fedbrain.federated.aggregation.rule import BLOCK, Difference, Update, add_scaled
from fedbrain.federated.arrays import serialized, to_record, view
from fedbrain.federated.grid import InProcessGrid
from fedbrain.federated.rounds import run_rounds
from fedbrain.federated.task import TrainingOptions

GENERATOR = np.random.default_rng(0)
VALUES = {
    "matrix": GENERATOR.random((3, 4), dtype=np.float32),
    "transposed": GENERATOR.random((3, 4)).T,
    "every second row": GENERATOR.random((4, 3, 2))[::2],
    "one number": np.full((), 2.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "half": GENERATOR.random((4, 4)).astype(np.float16),
    "whole numbers": np.arange(5),
}


@pytest.mark.parametrize("name", VALUES)
def test_an_array_has_flowers_bytes_and_is_read_where_it_lies(name):
    ours, flowers = serialized(VALUES[name]), Array(np.array(VALUES[name], order="C"))
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (
        flowers.dtype,
        flowers.shape,
        flowers.stype,
        flowers.data,
    )
    np.testing.assert_array_equal(view(ours), VALUES[name])
    np.testing.assert_array_equal(ours.numpy(), VALUES[name])
    assert not view(ours).flags.owndata


def test_a_record_has_flowers_identity():
    """The digest by which a SuperLink knows an object."""
    flowers = ArrayRecord({name: Array(np.array(values, order="C")) for name, values in VALUES.items()})
    assert to_record(VALUES).object_id == flowers.object_id


def test_blocks_sum_to_the_bits_of_whole_tensors():
    shape = (3, BLOCK // 2 + 5)  # the last block is a short one
    before, after = (GENERATOR.normal(size=shape).astype(np.float32) for _ in range(2))
    total = before.astype(np.float64)
    expected = total + 0.3 * (after.astype(np.float64) - before)
    add_scaled(total, 0.3, Difference({"w": np.asfortranarray(after)}, {"w": before}), "w")
    np.testing.assert_array_equal(total, expected)


def test_no_update_outlives_its_turn():
    """Each is gone before the next one comes, without the help of the garbage collector."""
    updates, alive = [], []

    def reply(message: Message, context) -> Message:
        if message.metadata.message_type == "query":
            record = ConfigRecord({"client": context.node_config["client"], "train": 3, "validation": 0})
            return Message(RecordDict({"client": record}), reply_to=message)
        content = RecordDict({"metrics": MetricRecord({"scans": 3, "seconds": 0.0})})
        if message.metadata.message_type == "train":
            alive.append(sum(update() is not None for update in updates))
            content["arrays"] = ArrayRecord(dict(message.content["arrays"]))
            updates.append(weakref.ref(content["arrays"]))
        return Message(content, reply_to=message)

    gc.collect()
    gc.disable()
    try:
        run_rounds(InProcessGrid(reply, "abc"), FedAvg(), {"w": VALUES["matrix"]}, TrainingOptions(rounds=2))
    finally:
        gc.enable()
    assert alive == [0] * 6


@pytest.mark.parametrize("kind", [FedAvgM, FedAdam, FedYogi])
def test_an_optimizer_steps_by_blocks_as_it_does_tensor_by_tensor(kind):
    """One long tensor, or its rows as tensors of their own: every element goes the same way."""
    before = {str(row): GENERATOR.normal(size=BLOCK * 2 // 3).astype(np.float32) for row in range(3)}
    deltas = [{name: GENERATOR.normal(size=tensor.size) for name, tensor in before.items()} for _ in range(2)]
    rows, whole = kind().init(before, "ab"), kind().init({"w": np.stack([*before.values()])}, "ab")
    for _ in range(2):
        rows, *_ = kind().apply(rows, [Update(c, d, n) for c, d, n in zip("ab", deltas, (3, 5))])
        stacked = [{"w": np.stack([*delta.values()])} for delta in deltas]
        whole, *_ = kind().apply(whole, [Update(c, d, n) for c, d, n in zip("ab", stacked, (3, 5))])
    np.testing.assert_array_equal(whole.tensors["w"], np.stack([*rows.tensors.values()]))
    for kept, moment in whole.moments.items():
        np.testing.assert_array_equal(moment, np.stack([rows.moments[kept.replace("/w", f"/{n}")] for n in before]))
