"""docs/job.example.json is what the flow would write for the demo's first stage, field by field."""

import json
import shutil
from pathlib import Path

from mdm.data.embeddings import TextSource
from mdm.presets import PRESETS
from mdm.run.job import Job, load_job
from mdm.structure import to_dict

EXAMPLE = Path(__file__).parents[2] / "docs" / "job.example.json"
TINY = PRESETS["tiny"]
STAGE = TINY.stages["16"]
JOB = Job(
    model=STAGE.model,
    training=STAGE.training,
    compute=STAGE.compute,
    cadence=STAGE.cadence,
    storage=TINY.storage,
    sampling=TINY.sampling,
    train_data="var/datasets/openmoji-0123456789ab/train",
    val_data="var/datasets/openmoji-0123456789ab/val",
    train_digest="f222096744056e0b40ef383299a1ffb5a9adaab2ff9ebe73894a99a1a59aa340",
    val_digest="491bc1d12531d5f5f36907be364c8fb3a3ece772486a99cb14dc6f82f1361457",
    text=TextSource(
        encoder="minilm",
        encoder_digest="8b31ef37c626848288f5e31d206f2e61e27557996c24a5f54b48597ded8d522d-f2d397a26de45090",
    ),
    seed=TINY.seed,
    device=TINY.hardware.device,
    threads=TINY.hardware.threads,
    data_workers=TINY.hardware.data_workers,
)


def written(job: Job) -> str:
    return json.dumps(to_dict(job), indent=1) + "\n"


def test_the_example_is_what_the_code_writes() -> None:
    assert EXAMPLE.read_text() == written(JOB), "make it anew: PYTHONPATH=. python tests/docs/test_job_example.py"


def test_the_example_is_a_job(tmp_path: Path) -> None:
    shutil.copyfile(EXAMPLE, tmp_path / "job.json")
    assert load_job(tmp_path) == JOB


if __name__ == "__main__":
    EXAMPLE.write_text(written(JOB))
