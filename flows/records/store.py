"""MLflow's own SQLite store in MDM_HOME: set up whole or not at all, and moved with its folder."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from shlex import quote

from flows.home import home, mlflow_database, sqlite_address

DAMAGED = ("file is not a database", "database disk image is malformed")  # SQLite's words


def artifact_root() -> str:
    """Where pictures and pages lie that are logged to the store in MDM_HOME."""
    return (home() / "mlflow" / "artifacts").as_uri()


def set_up_store() -> None:
    """Make MDM_HOME's store usable: there, whole, and with addresses of where it lies now. Raises sqlite3.Error."""
    database = mlflow_database()
    for left in database.parent.glob("set-up-*"):  # of a set-up that was killed; it takes seconds
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    if database.exists() and _was_never_finished(database):
        database.unlink()
    if not database.exists():
        _make(database)
    _move_artifacts(database)


def is_damage(error: Exception) -> bool:
    """Whether an error, SQLite's own or MLflow's account of it, says that the file is not what was written."""
    return any(words in str(error) for words in DAMAGED)


def damaged(database: Path, error: Exception) -> str:
    """What to do. The whole folder goes: SQLite would play a journal that is left into the new file."""
    why = next(words for words in DAMAGED if words in str(error))
    away = f"{database.parent}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    return (
        f"{database} is damaged ({why}). Put back a whole one, or: mv {quote(str(database.parent))} {quote(away)}, and "
        "the same command makes a new one and sends all its points there"
    )


def _make(database: Path) -> None:
    """All tables in a folder of its own first: MLflow cannot go on with a store whose set-up was killed."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="set-up-", dir=database.parent) as folder:
        whole = Path(folder) / database.name
        SqlAlchemyStore(sqlite_address(whole), artifact_root()).engine.dispose()
        with contextlib.suppress(FileExistsError):  # another flow was faster
            _give_name(whole, database)


def _give_name(whole: Path, database: Path) -> None:
    """Raises FileExistsError rather than replace a store."""
    try:
        os.link(whole, database)
    except PermissionError:  # a file system without hard links
        if database.exists():
            raise FileExistsError(database) from None
        whole.rename(database)


def _was_never_finished(database: Path) -> bool:
    """Whether its set-up was cut off: the first experiment is written when all tables are there."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            return connection.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
        except sqlite3.OperationalError as error:
            return "no such table" in str(error)


def _move_artifacts(database: Path) -> None:
    """MLflow keeps absolute addresses of artifacts: where MDM_HOME was moved or copied, they are brought after it."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        places = connection.execute("SELECT experiment_id, artifact_location FROM experiments WHERE experiment_id != 0")
        for experiment, old in places.fetchall():
            if old != artifact_root() and old.endswith("/mlflow/artifacts"):  # the others were made by the user
                connection.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                    (artifact_root(), experiment),
                )
                connection.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ?",
                    (artifact_root(), len(old) + 1, experiment),
                )
