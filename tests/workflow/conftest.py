"""The small study, run once, on a real Slurm where there is one; the tests look at it and at copies of it."""

import pytest
from one_node_slurm import OneNodeSlurm, missing
from small_study import CONFIG, Study, fresh_checkout, write_data


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A running one-node Slurm, or None where it is not installed."""
    if missing():
        yield None
        return
    # Short, because a socket's path must be.
    slurm = OneNodeSlurm(tmp_path_factory.mktemp("slurm"))
    yield slurm
    slurm.stop()


@pytest.fixture(scope="session")
def study(root, tmp_path_factory, cluster) -> Study:
    """The small study, finished. On Slurm where there is one."""
    result = fresh_checkout(root, tmp_path_factory.mktemp("study") / "checkout")
    write_data(result.folder / "data")
    result.write_config(CONFIG)
    if cluster is None:
        result.snakemake()
    else:
        result.environment |= cluster.environment | {"PYTHONPATH": result.environment["PYTHONPATH"]}
        # No accounting here, so the state of jobs is asked of squeue; a real cluster needs none of these.
        result.snakemake(
            *("--profile", "slurm", "--slurm-no-account", "--slurm-status-command", "squeue"),
            *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"),
        )
    return result
