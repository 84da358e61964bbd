"""Where things lie on this machine, and the environment that Prefect and MLflow are given."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


class Trouble(Exception):
    """Something the user can mend: its message is the one line they see."""


def home() -> Path:
    """MDM_HOME, by default ``var/`` in the project."""
    return Path(os.environ.get("MDM_HOME") or PROJECT / "var").expanduser().resolve()


def datasets() -> Path:
    return home() / "datasets"


def weights() -> Path:
    return home() / "weights"


def run_folder(run: str) -> Path:
    """A run is named by its name or its folder."""
    return Path(run) if os.sep in run else home() / "runs" / run


def make_home() -> None:
    """Create MDM_HOME and see that it can be written."""
    try:
        home().mkdir(parents=True, exist_ok=True)
        probe = home() / f".write-{os.getpid()}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise Trouble(
            f"MDM_HOME {home()} cannot be written ({error.strerror}): set MDM_HOME to another folder"
        ) from error


def embed_services() -> None:
    """Prefect's temporary server and MLflow's SQLite inside MDM_HOME, whatever the caller's environment says.

    Call it before prefect or mlflow are imported.
    """
    for name in [n for n in os.environ if n.startswith(("PREFECT_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ["PREFECT_HOME"] = str(home() / "prefect")
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"  # errors are told once, by the command itself
    quiet_services()


def quiet_services() -> None:
    """No telemetry, and no long hangs on a dead MLflow server."""
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_LOGGING_LEVEL"] = "CRITICAL"  # what fails is raised; on a full disk it also logs pages of SQL
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


def mlflow_uri() -> str:
    """MLFLOW_TRACKING_URI, by default a SQLite file in MDM_HOME."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for as long as this process lives; a second holder is told who has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Trouble(f"{what} is in use by {file.read().strip() or 'another process'}: wait, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} ({' '.join(_command())})")
        file.flush()
        yield


def _command() -> list[str]:
    command = Path("/proc/self/cmdline")
    return command.read_text().split("\0")[:-1] if command.exists() else ["mdm"]
