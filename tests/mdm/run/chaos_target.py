"""A small training for ckpt-chaos (PyPI, MIT) to kill at every file event of its saves, and the command that does it.

python chaos_target.py train OUT DATA      train OUT to its end, from wherever it is
python chaos_target.py result OUT          what came of it: digests of the last checkpoint, all points of the metrics
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

LAST = "nimg-000000000032"
FAIL_ON = "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL"


def train(out: Path, data: Path) -> int:
    from mdm.files import write_json
    from mdm.structure import to_dict
    from mdm.training.train import main
    from small import small_job

    out.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":
        changes = {"nimg": 32, "log_every_nimg": 16, "eval_every_nimg": 16, "average_every_nimg": 16}
        write_json(out / "job.json", to_dict(small_job(data, keep_checkpoints=100, hang_s=60, **changes)))
    while not (out / "job.json").exists():
        time.sleep(0.05)
    return main([str(out)])


def result(out: Path) -> str:
    """Without torch: it is asked for after every crash."""
    files = sorted((out / "checkpoints" / LAST).rglob("*.safetensors"))
    lines = [f"{path.relative_to(out)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    for line in (out / "metrics.jsonl").read_text().splitlines():
        point = json.loads(line)
        values = {name: value for name, value in point["values"].items() if not name.startswith(("speed", "system"))}
        lines += [f"{point['nimg']} {name} {value}" for name, value in values.items()]
    return "\n".join(sorted(lines))


def command(work: Path, data: Path, *options: str) -> list[str]:
    """The command that kills a training of ``data`` in ``work``: 0 where nothing failed and no work was lost."""
    here = [sys.executable, __file__]
    return [
        *(sys.executable, "-m", "ckpt_chaos", "run", "--work", str(work), "--fail-on", FAIL_ON, "--timeout", "300"),
        *("--checkpoint-glob", "{out}/checkpoints/nimg-????????????", "--ckpt-ignore-size"),  # seconds are in them
        *("--step-regex", r"resuming from nimg-0*(\d+)", "--result-cmd", " ".join([*here, "result", "{out}"])),
        *options,
        *("--", *here, "train", "{out}", str(data)),
    ]


if __name__ == "__main__":
    if sys.argv[1] == "result":
        print(result(Path(sys.argv[2])))
    else:
        sys.exit(train(Path(sys.argv[2]), Path(sys.argv[3])))
