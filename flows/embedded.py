"""``mdm run``: the flow in this process, with Prefect's temporary server, a live board, and a plain end."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from flows.home import PROJECT, home, mlflow_uri, run_folder


def run_embedded(preset: str, overrides: dict[str, Any]) -> int:
    """Run the flow to its end -> exit code. Prints where things are, or the one line that says what went wrong."""
    from flows.reproduction import explain, parameters, reproduction

    for number in (signal.SIGTERM, signal.SIGHUP):  # a batch system, a closed terminal: an orderly end, as by Ctrl-C
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    end_stale_servers()
    try:
        start_server()
        name = reproduction(**parameters(preset, overrides))
    except BaseException as error:
        line = explain(error)
        if line is None:  # not the user's to mend: the traceback is the report
            raise
        print(f"\nmdm: {line}", file=sys.stderr)
        return 1
    print(where_things_are(name))
    return 0


def start_server() -> None:
    """Start Prefect's temporary server in a process group of its own: the flow must still tell it how it ended.

    A terminal's Ctrl-C and a batch system's SIGTERM go to a whole group; Prefect would then ask a dead server for many
    minutes. Without this call Prefect starts the same server itself, and offers no way to say so.
    """
    from prefect.server.api.server import SubprocessASGIServer

    popen = subprocess.Popen
    subprocess.Popen = partial(popen, process_group=0)  # type: ignore[misc, assignment]
    try:
        SubprocessASGIServer().start()
    finally:
        subprocess.Popen = popen  # type: ignore[misc]


def end_stale_servers() -> None:
    """End temporary Prefect servers of this MDM_HOME whose flow was killed. Call it holding MDM_HOME's lock."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        try:
            if "prefect.server.api.server:create_app" not in (process.info["cmdline"] or []):
                continue
            environment = process.environ()
            ours = environment.get("PREFECT_HOME") == str(home() / "prefect")
            if ours and "PREFECT__SERVER_EPHEMERAL" in environment:
                process.terminate()
        except psutil.Error:
            continue  # gone meanwhile, or another user's


def where_things_are(name: str) -> str:
    """The closing lines: the page, the servers' commands, the checkpoint, a prompt of one's own."""
    run = run_folder(name)
    bin_folder = _shown(Path(sys.executable).parent)
    return "\n".join(
        [
            "",
            f"Report       {_shown(run / 'report' / 'index.html')}",
            f"Checkpoints  {_shown(last_stage(run) / 'checkpoints')}",
            f"Your prompt  {bin_folder}/mdm sample {name} 'red heart' 'woman medium skin tone' 'grinning face'",
            f"MLflow UI    {bin_folder}/mlflow ui --backend-store-uri {mlflow_uri()}",
            f"Prefect UI   PREFECT_HOME={_shown(home() / 'prefect')} {bin_folder}/prefect server start",
        ]
    )


def last_stage(run: Path) -> Path:
    """The folder of a run's last training stage."""
    stages = json.loads((run / "config.json").read_text())["stages"]
    return run / list(stages)[-1]


def _shown(path: Path) -> str:
    """Relative to the project where that is shorter to read and the user stands there."""
    if Path.cwd() == PROJECT and path.is_relative_to(PROJECT):
        return str(path.relative_to(PROJECT))
    return str(path)
