"""What exactly is run: machine, versions, commit, configuration. Kept as tags of the MLflow run."""

import os
import platform
from importlib.metadata import version

from flows.home import PROJECT
from mdm.presets import Preset
from mdm.run.job import commit, cpu_name
from mdm.structure import digest

PACKAGES = ("torch", "transformers", "prefect", "mlflow", "numpy")


def versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def run_facts(preset: Preset) -> dict[str, str]:
    """Tags ``mdm.*``, and the Prefect flow run's id where there is one."""
    facts = {
        "mdm.machine": f"{cpu_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "mdm.versions": f"Python {platform.python_version()}, " + ", ".join(f"{p} {v}" for p, v in versions().items()),
        "mdm.config": digest(preset),
        "mdm.commit": commit(PROJECT),
    }
    from prefect.runtime import flow_run

    return facts | ({"prefect.flow_run_id": str(flow_run.id)} if flow_run.id else {})
