"""The same apps under a real SuperLink with SuperNodes, processes of their own: the same model as in this process, to the bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from federation import SEED, federate
from small_clients import make_client

from fedbrain.federated.task import TrainingOptions

CLIENTS = ("alpha", "beta", "gamma")
PATIENCE = 300  # seconds, for what takes one minute
PYPROJECT = """
[project]
name = "trial"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "fedbrain"

[tool.flwr.app.components]
serverapp = "trial:server_app"
clientapp = "trial:client_app"

[tool.flwr.app.config]
"""
APPS = """
import json, os, sys, time
from pathlib import Path

import numpy as np

sys.path.insert(0, {tests!r})
from small_clients import build_small_model, make_client

from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.apps import build_client_app, build_server_app
from fedbrain.federated.kept import Kept
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import TrainingOptions

FOLDER = Path({folder!r})
OPTIONS = TrainingOptions(**{options!r})
RULE = build_rule({rule!r})
SHARING = Sharing.of(build_small_model(), RULE)


def load(context):
    name = context.node_config["client"]
    with open(FOLDER / "calls.txt", "a") as file:
        file.write(f"{{name}} {{os.getpid()}}\\n")
    return make_client(name, seed={names!r}.index(name) + 1)


def keep(name):
    return Kept(FOLDER / f"{{name}}.safetensors", "trial")


def finish(result):
    np.savez(FOLDER / "partial.npz", **result.tensors)
    told = {{"best_round": result.best_round, "rows": result.rows}}
    (FOLDER / "result.json").write_text(json.dumps(told))
    (FOLDER / "partial.npz").rename(FOLDER / "model.npz")


STATE = build_small_model().state_dict()
client_app = build_client_app(load, build_small_model, SHARING, OPTIONS, rule=RULE, seed={seed}, keep=keep)
server_app = build_server_app(
    RULE, {{name: STATE[name].numpy() for name in SHARING.select(STATE, "shared")}}, OPTIONS, finish,
    seed={seed}, checkpoint=FOLDER / "checkpoint.safetensors", identity="trial", expected={clients},
)
"""


class Servers:
    """A SuperLink and SuperNodes of one trial, on ports of this machine alone."""

    def __init__(self, folder, rule, options):
        self.folder, self.processes = folder, {}
        self.port = free_port()
        (folder / "app").mkdir(parents=True)
        (folder / "app" / "pyproject.toml").write_text(PYPROJECT)
        told = {"tests": str(Path(__file__).parent), "folder": str(folder), "options": options, "rule": rule}
        code = APPS.format(**told, names=CLIENTS, seed=SEED, clients=len(CLIENTS))
        (folder / "app" / "trial.py").write_text(code)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n')
        self.environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        shared = ["--insecure", "--disable-runtime-dependency-installation"]
        self.start("superlink", "flower-superlink", *shared, "--host", "127.0.0.1", "--port", str(self.port))
        wait(lambda: answers(self.port), "the SuperLink does not answer", self)

    def start(self, name, program, *arguments):
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        with open(self.folder / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def start_node(self, client):
        place = ["--superlink", f"127.0.0.1:{self.port}", "--host", "127.0.0.1", "--port", str(free_port())]
        self.start(client, "flower-supernode", "--insecure", *place, "--node-config", f'client="{client}"')

    def run(self):
        command = [str(Path(sys.executable).with_name("flwr")), "run", str(self.folder / "app"), "here"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, name):
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)  # its ClientApp or ServerApp processes, too
        process.wait()

    def logs(self):
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait(done, otherwise, servers):
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"{otherwise}\n{servers.logs()}"
        time.sleep(0.1)


@pytest.fixture
def serve(tmp_path):
    running = []

    def start(rule, options):
        servers = Servers(tmp_path / "trial", rule, options)
        running.append(servers)
        return servers

    yield start
    for servers in running:
        for name in list(servers.processes):
            servers.kill(name)


def test_a_superlink_with_three_supernodes_gives_the_model_of_this_process(serve):
    options = {"rounds": 2, "batch_size": 5, "learning_rate": 0.02}
    servers = serve("scaffold", options)  # whose control variates travel, too, and whose clients remember
    for client in CLIENTS:
        servers.start_node(client)
    servers.run()
    wait((servers.folder / "model.npz").exists, "the run has not ended", servers)

    expected, _ = federate(made_clients(), "scaffold", TrainingOptions(**options))
    found = np.load(servers.folder / "model.npz")
    assert sorted(found) == sorted(expected.tensors)
    for name in found:
        np.testing.assert_array_equal(found[name], expected.tensors[name])
    told = json.loads((servers.folder / "result.json").read_text())
    assert told["best_round"] == expected.best_round
    measured = ["seconds", "peak_memory"]
    pd.testing.assert_frame_equal(
        pd.DataFrame(told["rows"]).drop(columns=measured), pd.DataFrame(expected.rows).drop(columns=measured)
    )
    calls = {tuple(line.split()) for line in (servers.folder / "calls.txt").read_text().splitlines()}
    assert len({process for _, process in calls}) >= len(CLIENTS)  # they really were other processes


def test_a_supernode_that_dies_is_a_row_with_a_reason_and_the_others_go_on(serve):
    options = {"rounds": 2, "batch_size": 5, "learning_rate": 0.02, "quorum": 2, "deadline": 30.0}
    servers = serve("fedavg", options)
    for client in CLIENTS:
        servers.start_node(client)
    servers.run()
    wait((servers.folder / "checkpoint.safetensors").exists, "the first round has not ended", servers)
    servers.kill("gamma")
    wait((servers.folder / "model.npz").exists, "the run has not ended", servers)

    rows = pd.DataFrame(json.loads((servers.folder / "result.json").read_text())["rows"])
    told = {(row.round, row.client): row for row in rows.itertuples()}
    assert {row.status for (number, client), row in told.items() if (number, client) != (2, "gamma")} == {"ok"}
    assert told[2, "gamma"].status == "failed"
    assert told[2, "gamma"].reason == "no reply within 30 s" or "unavailable" in told[2, "gamma"].reason.lower()
    assert [told[2, name].weight for name in CLIENTS[:2]] == pytest.approx([0.5, 0.5])


def made_clients():
    return {name: make_client(name, seed=number) for number, name in enumerate(CLIENTS, start=1)}
