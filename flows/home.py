"""Where things lie on this machine, who may write there, and the environment that Prefect and MLflow are given."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from mdm.files import try_lock

PROJECT = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Trouble(Exception):
    """Something the user can mend: its message is the one line they see."""


class Busy(Trouble):
    """Somebody else holds what is wanted; later it may be free."""


class Stopped(Trouble):
    """Somebody asked the work to end: no failure."""


def home() -> Path:
    """MDM_HOME, by default ``var/`` in the project."""
    return Path(os.environ.get("MDM_HOME") or PROJECT / "var").expanduser().resolve()


def datasets() -> Path:
    return home() / "datasets"


def sources() -> Path:
    """Where the source of a data set is looked for, under the set's name, unless another place is given."""
    return home() / "sources"


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


def embed_services(mlflow: str | None = None) -> list[str]:
    """Prefect's temporary server in MDM_HOME, and MLflow's store there or at the address given.

    The caller's settings of either would move the records elsewhere: they are ignored, and a line says which; how to
    log in to MLflow is none of them. Call it before prefect or mlflow are imported.
    """
    ignored = sorted(name for name in os.environ if name.startswith("PREFECT_"))
    lines = [f"ignored: {', '.join(ignored)} (this run has a Prefect server of its own)"] * bool(ignored)
    if mlflow is None and os.environ.pop("MLFLOW_TRACKING_URI", ""):
        lines.append(f"ignored: MLFLOW_TRACKING_URI (this run logs to {mlflow_database()}; --mlflow URI logs there)")
    for name in ignored:
        del os.environ[name]
    if mlflow is not None:
        os.environ["MLFLOW_TRACKING_URI"] = mlflow
    os.environ["PREFECT_HOME"] = str(home() / "prefect")
    os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = prefect_database()
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "3"  # a server of one's own that does not answer is no more
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"  # errors are told once, by the command itself
    quiet_services()
    return lines


def quiet_services() -> None:
    """No telemetry, no long hangs on a dead MLflow server, and servers on this machine are asked without a proxy."""
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_LOGGING_LEVEL"] = "CRITICAL"  # what fails is raised; on a full disk it also logs pages of SQL
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # of 120 s: a server that hangs costs it three times
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    spared = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), *LOOPBACK)))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = spared


def mlflow_database() -> Path:
    return home() / "mlflow" / "mlflow.db"


def mlflow_uri() -> str:
    """MLFLOW_TRACKING_URI, by default a SQLite file in MDM_HOME.

    A login that stands in a server's address goes to where MLflow looks for one, so that no file or line shows it.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return sqlite_address(mlflow_database())
    parts = urlsplit(given)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        login, _, host = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        os.environ["MLFLOW_TRACKING_URI"] = given = urlunsplit(parts._replace(netloc=host))
    return given


def without_secrets(text: str) -> str:
    """Passwords in addresses (a database's) are not shown."""
    return re.sub(r"(://[^\s/:@]*):[^\s@]+@", r"\1:***@", text)


def sqlite_address(file: Path, driver: str = "pysqlite") -> str:
    """A file as SQLAlchemy's address, whatever its name: alone SQLite's own URI can hold a question mark.

    The driver is named because MLflow makes a folder of whatever follows a bare ``sqlite:///``.
    """
    return f"sqlite+{driver}:///file:{quote(str(file))}?uri=true"


def prefect_database() -> str:
    """Prefect's database in MDM_HOME; by itself Prefect would cut the path at a question mark."""
    return sqlite_address(home() / "prefect" / "prefect.db", "aiosqlite")


def pasted(*words: str | Path) -> str:
    """A command as a shell takes it back."""
    return shlex.join(map(str, words))


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for as long as this process lives; a second holder is told who has it.

    Raises Busy then, and Trouble where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise Trouble(
            f"{path} cannot be written ({error.strerror}): {what} may be another user's; ask them, or set MDM_HOME to "
            "a folder of your own"
        ) from error
    with opened as file:
        if not try_lock(file):
            file.seek(0)
            raise Busy(f"{what} is in use by {file.read().strip() or 'another process'}: wait, or stop it")
        file.truncate(0)
        file.write(f"process {os.getpid()} ({' '.join(_command())})")
        file.flush()
        yield


def _command() -> list[str]:
    command = Path("/proc/self/cmdline")
    return command.read_text().split("\0")[:-1] if command.exists() else ["mdm"]
