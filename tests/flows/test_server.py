"""A Prefect server of one's own, as README starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mdm.files import is_locked

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server in the background, with a home of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("MDM_HOME", str(home / "mdm"))
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # `mdm deploy` asks past it
        subprocess.run(
            [sys.executable, "-m", "prefect", "server", "start", "--background", "--port", str(number)],
            cwd=PROJECT,
            check=True,
            capture_output=True,
        )
        server = psutil.Process(int((home / "server.pid").read_text()))
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{number}/api")
        try:
            wait_until_healthy(number)
            yield number
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


@pytest.mark.timeout(150)
def test_a_background_server_outlives_its_own_warnings(port: int) -> None:
    """Nobody reads its output; Prefect's own way of writing a warning would end it there. See infra/logging.yml."""
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as malformed:
            malformed.sendall(b"no request\r\n\r\n")
            assert malformed.recv(100).startswith(b"HTTP/1.1 400")
    wait_until_healthy(port)


@pytest.mark.timeout(150)
def test_deploying_again_keeps_what_the_user_set_on_the_pool(port: int) -> None:
    asked(port, "work_pools/", {"name": "mdm-local", "type": "process", "concurrency_limit": 3})
    done = subprocess.run([sys.executable, "-m", "flows.cli", "deploy"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert asked(port, "work_pools/mdm-local")["concurrency_limit"] == 3
    assert asked(port, "deployments/name/mdm/full-reproduction")["work_pool_name"] == "mdm-local"
    (schedule,) = asked(port, "deployments/name/mdm-evaluation/watch")["schedules"]
    assert schedule["active"] is False  # until somebody names a run of theirs


@pytest.mark.timeout(150)
def test_a_flow_that_is_cancelling_ends_its_job_and_itself(port: int, tmp_path: Path) -> None:
    """Its worker has given up: nobody sends a signal."""
    (tmp_path / "flow.py").write_text(CANCELLED_FLOW)
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, "flow.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    (run,) = asked(port, "flow_runs/filter", {"flows": {"name": {"any_": ["cancelled"]}}})
    assert run["state"]["type"] == "CANCELLED", done.stderr
    assert (tmp_path / "starts").exists() and not is_locked(tmp_path / "lock")


CANCELLED_FLOW = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelling
from flows import cancel
from flows.home import quiet_services
from flows.launch import run_job

quiet_services()
cancel.LOOK_EVERY_S = 0.0

def cancel_it() -> None:
    if Path("starts").exists():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)

@flow(name="cancelled")
def work():
    with cancel.ends_cancelled() as end:
        run_job("stub_job", Path.cwd(), 1, 1, cancel_it)
    return end.state

work()
"""


def asked(port: int, what: str, body: dict[str, Any] | None = None) -> Any:
    """The server's answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{what}", data, {"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.loads(answer.read())


def wait_until_healthy(port: int) -> None:
    for _ in range(90):
        try:
            assert asked(port, "health") is True
            return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server does not answer")
