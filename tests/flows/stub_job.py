"""A job without torch's work: says that it started, holds its lock, waits for ``go``, says that it ended."""

import fcntl
import os
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
with (folder / "environment").open("a") as environment:
    environment.write(f"{os.environ['OMP_NUM_THREADS']} {os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT']}\n")
if os.environ["RANK"] != "0":
    sys.exit()
with (folder / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (folder / "starts").open("a") as starts:
        starts.write("start\n")
    if (folder / "fail").exists():
        sys.exit("the stub was told to fail")
    while not (folder / "go").exists():
        time.sleep(0.05)
    (folder / "ended").touch()
