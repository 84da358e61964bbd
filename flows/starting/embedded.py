"""``mdm run``: the flow in this process, with Prefect's temporary server, a live board, and a plain end."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

from flows.home import (
    PROJECT,
    Trouble,
    hold,
    home,
    mlflow_uri,
    pasted,
    prefect_database,
    run_folder,
    without_secrets,
)
from flows.starting.preflight import on_this_machine
from mdm.files import load_json
from mdm.presets import resolve
from preprocessing.items import printable


def run_embedded(preset: str, overrides: dict[str, Any]) -> int:
    """Run the whole reproduction to its end -> exit code. Prints where things are."""
    from flows.reproduction import parameters, reproduction, run_name

    name = run_name(on_this_machine(resolve(preset, overrides)))

    def flow() -> None:
        with hold(run_folder(name) / "flow.lock", f"run {name}"):
            pass  # by a deployed flow: said before anything is started
        start_server()
        reproduction(**parameters(preset, overrides))

    code = _ended(flow)
    if code == 0:
        print(where_things_are(name))
    return code


def embedded(flow: Callable[[], Any]) -> int:
    """Run another flow to its end -> exit code."""

    def started() -> None:
        start_server()
        flow()

    return _ended(started)


def _ended(flow: Callable[[], None]) -> int:
    """Exit code of a flow; prints the one line that says what went wrong."""
    from flows.reproduction import explain

    end_stale_servers()
    try:
        flow()
    except BaseException as error:
        line = explain(error) or (ended_server() if isinstance(error, Exception) else None)
        if line is None:  # not the user's to mend: the traceback is the report
            raise
        print("", *map(printable, f"mdm: {line}".split("\n")), sep="\n", file=sys.stderr)
        return 1
    return 0


class Server(Popen):
    """Prefect's temporary server, in a process group of its own: the flow must still tell it how it ended.

    A terminal's Ctrl-C and a batch system's SIGTERM go to a whole group; Prefect would then ask a dead server for many
    minutes. What the server says goes to a file.
    """

    started: "Server | None" = None
    is_starting = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        server_log().parent.mkdir(parents=True, exist_ok=True)
        with server_log().open("wb") as log:
            super().__init__(*args, **{**kwargs, "process_group": 0, "stdout": log, "stderr": log})
        Server.started = self

    def poll(self) -> int | None:
        """As ever; while it starts, raises Trouble where it has ended: Prefect would start it again and again."""
        code = super().poll()
        if code is not None and Server.is_starting:
            raise Trouble(str(ended_server()))
        return code


def start_server() -> None:
    """Start the server that Prefect would start itself, with no way to say how. Raises Trouble where it ends."""
    from prefect.server.api.server import SubprocessASGIServer

    subprocess.Popen = Server  # type: ignore[misc]
    try:
        SubprocessASGIServer().start()
    except RuntimeError as error:
        raise Trouble(f"Prefect's temporary server does not answer: {error}. {_last_words()}") from error
    finally:
        subprocess.Popen = Popen  # type: ignore[misc]
        Server.is_starting = False


def ended_server() -> str | None:
    """What became of Prefect's temporary server, if it has ended."""
    code = None if Server.started is None else Popen.poll(Server.started)
    return None if code is None else f"Prefect's temporary server ended with code {code}. {_last_words()}"


def server_log() -> Path:
    return home() / "prefect" / "server.log"


def _last_words() -> str:
    """Of the server's log: the last error in it, else its last line."""
    lines = ["(nothing)", *server_log().read_text(errors="replace").strip().splitlines()]
    told = next((line for line in reversed(lines) if re.match(r"\S*(Error|Exception)\b", line)), lines[-1])
    return f"Its log, {server_log()}, says: {told}"


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
    from evaluation.images.captions import read_lines  # torch, which a run that cannot start need not wait for

    run = run_folder(name)
    bin_folder = Path(_shown(Path(sys.executable).parent))
    captions = dict.fromkeys(printable(line.caption)[:60] for line in read_lines(run / "samples" / "samples"))
    prompts = list(captions)[:3] or ["PROMPT"]  # of the kind that the run has learned
    rows = {
        "Report": _shown(run / "report" / "index.html"),
        "Checkpoints": _shown(last_stage(run) / "checkpoints"),
        "Your prompt": pasted(*_home(), bin_folder / "mdm", "sample", name, *prompts),
        "MLflow UI": mlflow_command(bin_folder),
        "Prefect UI": pasted(*_prefect(), bin_folder / "prefect", "server", "start"),
    }
    return "\n".join(["", *(f"{what:12} {where}" for what, where in rows.items())])


def mlflow_command(bin_folder: Path) -> str:
    """What shows MLflow's page: a server has its own."""
    uri = mlflow_uri()
    if uri.startswith(("http://", "https://")):
        return uri
    return without_secrets(pasted(bin_folder / "mlflow", "ui", "--backend-store-uri", uri))


def _home() -> list[str]:
    return ["env", f"MDM_HOME={home()}"] if "MDM_HOME" in os.environ else []


def _prefect() -> list[str]:
    """Prefect cuts its path at a question mark, where it is not told the database's address."""
    database = [f"PREFECT_SERVER_DATABASE_CONNECTION_URL={prefect_database()}"] * ("?" in str(home()))
    return ["env", f"PREFECT_HOME={_shown(home() / 'prefect')}", *database]


def last_stage(run: Path) -> Path:
    """The folder of a run's last training stage."""
    stages = load_json(run / "config.json")["stages"]
    return run / list(stages)[-1]


def _shown(path: Path) -> str:
    """Relative to the project where that is shorter to read and the user stands there."""
    if Path.cwd() == PROJECT and path.is_relative_to(PROJECT):
        return str(path.relative_to(PROJECT))
    return str(path)
