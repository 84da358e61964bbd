"""What exactly is run: machine, versions, commit, configuration. Kept as tags of the MLflow run."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from flows.home import PROJECT
from mdm.presets import Preset
from mdm.structure import digest

PACKAGES = ("torch", "transformers", "prefect", "mlflow", "numpy")


def run_facts(preset: Preset) -> dict[str, str]:
    """Tags ``mdm.*``, and the Prefect flow run's id where there is one."""
    facts = {
        "mdm.machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "mdm.versions": f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES),
        "mdm.config": digest(preset),
        "mdm.commit": _commit(),
    }
    from prefect.runtime import flow_run

    return facts | ({"prefect.flow_run_id": str(flow_run.id)} if flow_run.id else {})


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def _commit() -> str:
    """The checkout's commit, marked where files differ from it."""
    git = ["git", "-C", str(PROJECT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return commit + (" with uncommitted changes" if changed.strip() else "")
