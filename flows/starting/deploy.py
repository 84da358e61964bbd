"""``mdm deploy``: the work pool, and every deployment of prefect.yaml, on the server at PREFECT_API_URL."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from flows.home import PROJECT, Trouble, quiet_services

POOL = "mdm-local"
WAIT_S = 30.0  # for a server that is starting


def deploy_all() -> int:
    """Raises Trouble where no server answers."""
    quiet_services()
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise Trouble(
            "PREFECT_API_URL is not set. Start a server (`prefect server start`) and "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    _wait_for_server(url)
    if _prefect("work-pool", "inspect", POOL, quiet=True) != 0:  # what was set on an existing one stays
        _must("work-pool", "create", POOL, "--type", "process")
    _must("--no-prompt", "deploy", "--all")
    print(
        f"next: .venv/bin/prefect worker start --pool {POOL}\n"
        "then: .venv/bin/prefect deployment run mdm/full-reproduction --param preset=tiny --watch"
    )
    return 0


def _wait_for_server(url: str) -> None:
    """One that was just started in the background listens after some seconds."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10).read()
            return
        except (urllib.error.URLError, OSError, ValueError) as error:
            if time.monotonic() > deadline or isinstance(error, ValueError):
                raise Trouble(
                    f"no Prefect server answers at PREFECT_API_URL {url} ({error}): start it, or mend the address"
                ) from error
        time.sleep(0.5)


def _prefect(*command: str, quiet: bool = False) -> int:
    prefect, shown = str(Path(sys.executable).with_name("prefect")), subprocess.DEVNULL if quiet else None
    return subprocess.run(
        [prefect, *command], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=shown, stderr=shown
    ).returncode


def _must(*command: str) -> None:
    code = _prefect(*command)
    if code != 0:
        raise Trouble(f"`prefect {' '.join(command)}` failed with code {code}")
