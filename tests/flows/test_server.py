"""A Prefect server of one's own, as README starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.timeout(150)
def test_a_background_server_outlives_its_own_warnings(tmp_path: Path) -> None:
    """Nobody reads its output; Prefect's own way of writing a warning would end it there. See infra/logging.yml."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    subprocess.run(
        [sys.executable, "-m", "prefect", "server", "start", "--background", "--port", str(port)],
        env={**environment, "PREFECT_HOME": str(tmp_path)},
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    server = psutil.Process(int((tmp_path / "server.pid").read_text()))
    try:
        wait_until_healthy(port)
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as malformed:
                malformed.sendall(b"no request\r\n\r\n")
                assert malformed.recv(100).startswith(b"HTTP/1.1 400")
        wait_until_healthy(port)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def wait_until_healthy(port: int) -> None:
    for _ in range(90):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5) as answer:
                assert answer.read() == b"true"
                return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server does not answer")
