"""Several runs in one process: the same bytes as one by one, and nothing that is finished is lost or made twice."""

import functools
import os

import pytest
from small_clients import make_client

from fedbrain.errors import StudyError
from fedbrain.federated import cell
from fedbrain.federated.batch import HELD, train_runs
from fedbrain.federated.cell import train_cell
from fedbrain.tables import RUN_RESULTS

OPTIONS = {"head": "linear", "tuning": "frozen", "training": {"rounds": 2, "batch_size": 4}, "code": "as it is"}
RULES = ("fedavg", "fedce", "local")


@pytest.fixture
def runs(tmp_path):
    """Runs of one small study by their folder's parent."""
    clients = {name: make_client(name, seed=k, shape=(384, 2, 2, 2)) for k, name in enumerate("AB")}

    def listed(parent, **changes):
        train = functools.partial(train_cell, clients, **(OPTIONS | changes))
        return [
            (f"cell {rule}", tmp_path / parent / rule, functools.partial(train, aggregation=rule, folder=folder))
            for rule in RULES
            for folder in [tmp_path / parent / rule]
        ]

    return listed


@pytest.fixture
def trained(monkeypatch):
    """The models that were written, in order: one for each run that was really trained."""
    real, found = cell._write_model, []

    def write_model(result, path):
        found.append(path)
        real(result, path)

    monkeypatch.setattr(cell, "_write_model", write_model)
    return found


def contents(folder, names=RUN_RESULTS[1:-1]):
    """What does not tell a time."""
    return {name: (folder / name).read_bytes() for name in names}


def test_a_batch_gives_the_bytes_of_single_runs(runs):
    train_runs(runs("together"))
    for _, folder, train in runs("apart"):
        train()
        together = folder.parent.parent / "together" / folder.name
        assert contents(folder) == contents(together)
        assert sorted(path.name for path in together.iterdir() if path.is_file()) == sorted(RUN_RESULTS)
        assert not (together / HELD).exists()


def test_what_is_there_is_not_trained_again_unless_something_changed(runs, trained):
    train_runs(runs("a"))
    assert len(trained) == 3
    files = [folder / name for _, folder, _ in runs("a") for name in RUN_RESULTS]
    before = [path.read_bytes() for path in files]
    for path in files:
        os.utime(path, (1, 1))
    train_runs(runs("a"))
    assert len(trained) == 3
    assert [path.read_bytes() for path in files] == before
    assert all(path.stat().st_mtime > 1 for path in files)  # or a workflow would take them for outdated
    train_runs(runs("a", seed=1))
    assert len(trained) == 6
    (files[0].parent / "model.safetensors").unlink()
    train_runs(runs("a", seed=1))
    assert len(trained) == 7
    train_runs(runs("a", seed=1, code="edited"))
    assert len(trained) == 10


def test_a_run_that_fails_stops_no_other_and_loses_nothing(runs, trained):
    def fail():
        raise FloatingPointError("the training loss is not finite")

    listed = runs("a")
    broken = [listed[0], (*listed[1][:2], fail), listed[2]]
    with pytest.raises(StudyError, match=r"1 of 3 runs .* kept; cell fedce: FloatingPointError: the training loss"):
        train_runs(broken)
    assert len(trained) == 2
    before = contents(listed[2][1])
    for _, folder, _ in listed:  # as the workflow does after a job that failed
        for name in RUN_RESULTS:
            (folder / name).unlink(missing_ok=True)
    train_runs(listed)
    assert len(trained) == 3  # the one that had failed
    assert contents(listed[2][1]) == before
    assert not any((folder / HELD).exists() for _, folder, _ in listed)


def test_a_single_run_that_fails_says_so_itself(tmp_path):
    def fail():
        raise MemoryError("out of memory")

    with pytest.raises(MemoryError):
        train_runs([("cell fedavg", tmp_path, fail)])
