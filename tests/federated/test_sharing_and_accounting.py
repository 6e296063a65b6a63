import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from federation import OPTIONS, RecordingGrid, federate
from torch import nn

from fedbrain.federated.accounting import payload_bytes
from fedbrain.federated.sharing import Sharing


def test_the_first_pattern_decides():
    sharing = Sharing((("*.norm.*", "private"), ("encoder.*", "frozen"), ("*", "shared")))
    names = ["encoder.norm.bias", "encoder.qkv.weight", "head.weight", "encoders.weight"]
    assert [sharing.role(name) for name in names] == ["private", "frozen", "shared", "shared"]
    assert sharing.select(names, "shared") == ["head.weight", "encoders.weight"]


def test_a_name_without_a_pattern_raises():
    with pytest.raises(ValueError, match=r"no pattern covers the tensor 'head.weight'"):
        Sharing((("encoder.*", "frozen"),)).role("head.weight")


def test_an_unknown_role_raises():
    with pytest.raises(ValueError, match="role 'public' is unknown"):
        Sharing((("*", "public"),))


def test_what_is_trained_is_shared():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    for parameter in [*model[0].parameters(), *model[2].parameters()]:
        parameter.requires_grad_(False)
    names = list(model.state_dict())
    running = ["1.running_mean", "1.running_var"]  # not the counter of batches, and not the frozen norm's
    assert Sharing.of(model).select(names, "shared") == ["1.weight", "1.bias", *running]
    assert Sharing.of(model).select(names, "private") == []


def test_bytes_of_arrays():
    assert payload_bytes([np.zeros((3, 4), np.float32), np.zeros((), np.float64), np.zeros((0, 9), np.float16)]) == 56


def test_peak_memory_remembers_what_was_held_and_is_of_the_block_alone(tmp_path):
    np.save(tmp_path / "mapped.npy", np.ones(25_000_000))  # 200 MB
    program = """
import sys, time
import numpy as np
from fedbrain.federated.accounting import PeakMemory, anonymous_memory
before = anonymous_memory()
with PeakMemory("cpu") as quiet:
    assert np.load(sys.argv[1], mmap_mode="r").sum() == 25_000_000  # pages of a file do not count
    time.sleep(0.2)
with PeakMemory("cpu") as busy:
    block = np.ones(25_000_000)
    time.sleep(0.2)
    del block
    time.sleep(0.2)
print(quiet.bytes - before, busy.bytes - before)
"""  # in a process of its own: this one has memory to reuse
    command = [sys.executable, "-c", program, str(tmp_path / "mapped.npy")]
    quiet, busy = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert quiet < 60e6
    assert busy > 180e6


def test_nested_blocks_each_have_their_own_peak():
    program = """
import time
import numpy as np
from fedbrain.federated.accounting import PeakMemory, anonymous_memory
before, peaks = anonymous_memory(), []
with PeakMemory("cpu") as run:
    for size in (0, 25_000_000, 0):
        with PeakMemory("cpu") as turn:
            block = np.ones(size)
            time.sleep(0.2)
            del block
            time.sleep(0.2)
        peaks.append(turn.bytes)
    held = np.ones(12_500_000)  # shorter than a sample, but there at the beginning of the turn
    with PeakMemory("cpu") as turn:
        pass
    peaks.append(turn.bytes)
peaks.append(run.bytes)
import threading
time.sleep(0.2)
print(*(peak - before for peak in peaks), threading.active_count())
"""  # in a process of its own: this one has memory to reuse
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    idle, busy, after, held, whole, threads = map(int, done.stdout.split())
    assert max(idle, after) < 60e6
    assert busy > 180e6
    assert 90e6 < held < 180e6
    assert whole >= busy
    assert threads == 1


class Told(RecordingGrid):
    """Replies say that the k-th one took k seconds and 100 - k bytes; those after the last training round took 1000 bytes."""

    count = 0

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if "metrics" in reply.content:
                self.count += 1
                last = reply.metadata.message_type == "evaluate"
                reply.content["metrics"]["seconds"] = float(self.count)
                reply.content["metrics"]["peak_memory"] = 1000 if last else 100 - self.count
        return replies


def test_rows_have_what_each_reply_says_that_it_took_the_last_evaluation_included(three_clients):
    result, _ = federate(three_clients, options=replace(OPTIONS, rounds=2), grid=Told)
    # A, B and C in the rounds 1 and 2, then once more.
    assert [row["seconds"] for row in result.rows] == [1, 2, 3, 4 + 7, 5 + 8, 6 + 9]
    assert [row["peak_memory"] for row in result.rows] == [99, 98, 97, 1000, 1000, 1000]


class Spoilt(RecordingGrid):
    """The first client sends what is not finite, or no numbers at all; of what it took it says odd things."""

    spoilt = np.array([np.nan, 1.0], np.float32)

    def pull_messages(self, message_ids):
        from flwr.app import Array

        replies = super().pull_messages(message_ids)
        for reply in replies:
            if "arrays" in reply.content and reply.metadata.src_node_id == min(self.contexts):
                reply.content["arrays"]["2.bias"] = Array(self.spoilt)
                reply.content["metrics"]["seconds"] = float("nan")
                reply.content["metrics"]["peak_memory"] = 12.0
        return replies


@pytest.mark.parametrize("spoilt", [np.array([np.nan, 1.0], np.float32), np.array(["a", "b"])])
def test_a_refused_update_was_sent_and_took_what_it_took(three_clients, monkeypatch, spoilt):
    monkeypatch.setattr(Spoilt, "spoilt", spoilt)
    result, _ = federate(three_clients, options=replace(OPTIONS, rounds=2, quorum=2), grid=Spoilt)
    refused = [row for row in result.rows if row["client"] == "A"]
    assert all("update refused" in row["reason"] for row in refused)
    usual = next(row["bytes_up"] for row in result.rows if row["client"] == "B")
    for row in refused:
        assert row["bytes_up"] - usual == spoilt.nbytes - 2 * 4
        assert row["peak_memory"] >= 12
    assert refused[0]["seconds"] is None  # no number, so nothing is known
    assert refused[1]["seconds"] > 0  # of the last evaluation
