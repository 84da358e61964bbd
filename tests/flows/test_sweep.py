"""A run's checkpoints under a protocol: what is measured, what is missing, and that the same call goes on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dozen import write_json_in
from evaluation.generate import ImageJob, generate_images
from evaluation.images.image_folder import ImageFolder
from evaluation.networks.features import EfficientNetLite0
from evaluation.pages.sections import own_identity
from evaluation.protocols import PROTOCOLS
from flows import evaluation as tasks
from flows import sweep
from flows.cli import main
from flows.datasets.parts import part_lock
from flows.datasets.removal import kept_elsewhere
from flows.datasets.sets import sets_of_run
from flows.measuring import drawing
from flows.measuring.plan import Evaluation, Point, lacking, plan
from flows.measuring.told import plan_lines, preset_lines, result_lines, warnings
from flows.progress import board
from mdm.config import MODELS, Labels
from mdm.files import load_json, write_json
from mdm.presets import resolve
from mdm.stage import Stage
from mdm.structure import from_dict, to_dict
from mdm.training.train import main as train
from small import small_job, write_dataset
from tests.evaluation.test_points import row
from tests.flows.test_evaluation import MODEL, PRESET, Silent

LAST = "nimg-000000000016"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one tiny stage with checkpoints at 8 and 16 images."""
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    data, folder = tmp_path / "datasets" / "squares", tmp_path / "runs" / "small"
    for split in ("train", "val"):
        write_dataset(data, split, 12, 32)
    job = small_job(data, nimg=16, checkpoint_every_nimg=8, caption_dropout=0.0)
    job = replace(job, model=MODEL, text=None, sampling=PRESET.sampling)
    (folder / "16").mkdir(parents=True)
    write_json(folder / "16" / "job.json", to_dict(job))
    write_json(folder / "config.json", to_dict(PRESET))
    assert train([str(folder / "16")]) == 0
    return folder


def test_every_point_of_a_sweep_is_named_once(run: Path) -> None:
    (one,) = plan("small", "embedded", {}).points
    assert (one.name, one.nimg, one.sampling) == (LAST, 16, PRESET.sampling)
    with pytest.raises(ValueError, match=r"guidance must be 1: this model was trained with its labels always there"):
        plan("small", "embedded", {"guidance": ["1", "3/2"]})
    nulled = replace(PRESET.stages["16"], model=replace(MODEL, labels=Labels(num_classes=4, null=True)))
    write_json(run / "config.json", to_dict(replace(PRESET, stages={"16": nulled})))
    points = plan("small", "embedded", {"guidance": ["1", "3/2"], "steps": ["1", "2"]}).points
    assert all(point.name == Path(point.name).name for point in points)  # a folder each, not one in another
    assert [point.name for point in points] == [
        f"{LAST}_guidance-{g}_steps-{s}" for g in ("1", "3-2") for s in ("1", "2")
    ]
    assert points[-1].sampling.guidance == (3.0, 2.0) and points[-1].sampling.steps == 2
    every = plan("small", "watch", {"checkpoint": ["all"]}).points
    assert [point.name for point in every] == [f"nimg-{n:012d}" for n in (8, 16)]
    (watched,) = {replace(point.sampling, batch_size=1) for point in every}
    assert (watched.sampler, watched.steps, watched.spacing, watched.guidance) == ("dpmpp", 25, None, (1.0,))
    assert plan("small", "watch", {"steps": ["40"]}).points[0].sampling.steps == 40
    for asked in (["nimg-000000000008"], ["nimg-000000000008", "nimg-000000000008"]):  # of whichever others there are
        assert plan("small", "watch", {"checkpoint": asked}).points == every[:1]
    assert plan("small", "watch", {"checkpoint": ["all", "nimg-000000000008"]}).points == every
    assert plan(f"{run}/16", "embedded", {}).folder == plan("small/16", "embedded", {}).folder


def test_a_value_is_one_point_however_it_is_written(run: Path) -> None:
    nulled = replace(PRESET.stages["16"], model=replace(MODEL, labels=Labels(num_classes=4, null=True)))
    write_json(run / "config.json", to_dict(replace(PRESET, stages={"16": nulled})))
    points = plan("small", "embedded", {"guidance": ["1", "1.0", " 1", "1/1", "1.25"], "steps": ["10", "1_0"]}).points
    assert [point.name for point in points] == [f"{LAST}_guidance-{g}_steps-10" for g in ("1", "1.25")]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"guidance": ["x"]}, "--sweep guidance=x: not a number"),
        ({"guidance": ["nan"]}, "guidance must be finite and not negative, got nan"),
        ({"guidance": ["1e400"]}, "guidance must be finite and not negative, got inf"),
        ({"guidance": ["3/2/1"]}, "--sweep guidance=3/2/1: there are 2 levels"),
        ({"guidance": []}, "--sweep guidance=: give at least one value"),
        ({"colour": ["1"]}, "what can be swept is guidance, steps, sampler, checkpoint"),
        ({"sampler": ["euler"]}, "--sweep sampler=euler: there are ddpm"),
        ({"checkpoint": ["nimg-3"]}, "has no checkpoint 'nimg-3'; there are nimg-"),
    ],
)
def test_what_cannot_be_swept_is_said(run: Path, asked: dict[str, list[str]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plan("small", "embedded", asked)


def test_a_damaged_last_checkpoint_is_not_measured_by_another(run: Path) -> None:
    weights = run / "16" / "checkpoints" / LAST / "ema" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(
        ValueError, match=r"000016 is damaged \(.*to measure another: --sweep checkpoint=nimg-000000000008"
    ):
        plan("small", "embedded", {})


@pytest.mark.parametrize("text", ['[{"point": "nimg', "{}", '[{"point": "nimg-8"}]'])
def test_torn_results_are_found_before_anything_is_drawn(run: Path, text: str) -> None:
    file = plan("small", "embedded", {}).folder / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ValueError, match=r"results.json .*\. Delete it: the same `mdm evaluate` commands find what"):
        plan("small", "embedded", {})


def test_what_does_not_compare_is_not_in_one_table(tmp_path: Path) -> None:
    points = [row("aa", "one", 8, 20.0), row("bb", "two-is-longer", 16, 30.0)]
    sweep.write_results(tmp_path, points[:1])
    assert [line.split()[0] for line in result_lines(tmp_path)] == ["one"]
    sweep.write_results(tmp_path, points)
    first, *others = result_lines(tmp_path)
    assert "measured in 2 ways" in first and "do not compare" in first
    assert [line.split("  ")[0] for line in others[::2]] == ["embedded, digest aa", "embedded, digest bb"]
    assert len({line.index("N=") for line in others[1::2]}) == 1  # under each other


def test_an_interval_stands_behind_the_number_that_it_is_of(tmp_path: Path) -> None:
    point = row("aa", "one", 8, 20.0)
    (distance,) = point["metrics"]
    other = distance | {"label": "without one", "values": {"samples": 30.0}, "interval": {}}
    third = distance | {"label": "a cosine", "interval": {"samples": [19.5, 20.25]}}
    sweep.write_results(tmp_path, [point | {"metrics": [other, third]}])
    assert list(result_lines(tmp_path)) == ["one N=24  without one 30; a cosine 20 [19.5, 20.25]"]


def test_what_is_no_run_or_stage_is_said(run: Path) -> None:
    for name, told in (("other", "is no run"), ("small/64", "has no stage '64'; there are 16")):
        with pytest.raises(ValueError, match=told):
            plan(name, "embedded", {})
    (run / "16" / "job.json").unlink()
    with pytest.raises(ValueError, match="has not been trained"):
        plan("small", "embedded", {})


def test_few_uniform_steps_of_shifted_levels_are_warned_of() -> None:
    tiny = resolve("tiny", {})
    shifted = replace(tiny.sampling, spacing="uniform", steps=10)
    for bad in (shifted, replace(shifted, spacing=None)):  # ddpm's own is uniform
        assert any("too little variance" in line for line in warnings(tiny, bad))
    watched = replace(tiny.sampling, **PROTOCOLS["watch"].sampling)
    for fine in (replace(shifted, spacing="quadratic"), replace(shifted, steps=250), watched):
        assert list(warnings(tiny, fine)) == []


def test_what_a_protocol_lacks_is_named_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    lines = "\n".join(lacking(PROTOCOLS["coco2014-val-30k"], None, "flan-t5-xl"))
    wanted = ("text encoder flan-t5-xl: ", "data set coco2014-val: `mdm data coco2014-val`", "inception-2015-12-05.pt")
    for part in (*wanted, "dinov2"):
        assert part in lines
    assert lacking(PROTOCOLS["embedded"], None, "flan-t5-xl") == []
    plan_of_preset = "\n".join(preset_lines("cc12m-1024", "", PROTOCOLS["coco2014-val-30k"], {"guidance": ["1", "7"]}))
    with pytest.raises(ValueError, match="guidance must be 1: this model was trained with its labels always there"):
        list(preset_lines("imagenet-256", "", PROTOCOLS["gallery"], {}))
    assert "missing: a trained run: `mdm run cc12m-1024`" in plan_of_preset and "dinov2" in plan_of_preset
    assert "2 points of 30,000 images, 250 steps: 22,500,000 network calls of 1024 px" in plan_of_preset
    assert "about 80 A100-hours at Table 2's rate for 256 px, and 1024 px take more" in plan_of_preset
    assert "about 201 hours of an H200 at the rate measured there for 1024 px" in plan_of_preset
    assert "no time is known" in "\n".join(preset_lines("tiny", "", PROTOCOLS["gallery"], {}))


def test_a_preset_is_planned_by_stage_and_says_whose_number_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MDM_HOME", str(tmp_path))
    asked = ["--protocol", "coco2014-val-30k", "--dry-run"]
    assert main(["evaluate", "cc12m-1024", *asked]) == 0
    numbers = "Table 1's 18.35 (guidance 1) and 13.43 (guidance 1.35): of stage 256"
    assert f"{numbers}, not of stage 1024: name cc12m-1024/256\n" in capsys.readouterr().out
    assert main(["evaluate", "cc12m-1024/256", *asked]) == 0
    shown = capsys.readouterr().out
    assert f"{numbers}\nof stage 256, its last checkpoint\n" in shown and "7,500,000 network calls of 256 px" in shown
    assert main(["evaluate", "cc12m-1024/512", *asked]) == 1
    assert "cc12m-1024 has no stage '512'; there are 64, 256, 1024" in capsys.readouterr().err
    assert "Table 1's 3.51" in "\n".join(preset_lines("imagenet-256-dropout", "", PROTOCOLS["imagenet-50k"], {}))
    assert "Table 1" not in "\n".join(preset_lines("cc12m-1024-five", "256", PROTOCOLS["coco2014-val-30k"], {}))


@pytest.mark.parametrize(("name", "rated"), [("256x256", True), ("MDM-S64S256", True), ("tiny-16-32-64", False)])
def test_a_plan_without_samples_of_its_own_takes_the_rates_of_others(tmp_path: Path, name: str, rated: bool) -> None:
    """A released file's has none, and its model is of the papers'."""
    like = resolve("cc12m-256", {})
    stage = Stage(model=MODELS[name], training=like.stages["64"].training)
    preset = replace(resolve("tiny", {}) if "tiny" in name else like, stages={name: stage})
    preset = replace(preset, evaluation=replace(preset.evaluation, num_samples=30_000))
    point = Point("as-released", "vis_model.pth", tmp_path, 0, like.sampling)
    planned = Evaluation(tmp_path, preset, PROTOCOLS["mdm-released"], None, None, [point])
    told = "\n".join(plan_lines(planned))
    calls = preset.evaluation.num_samples * 250
    assert (f"{calls:,} network calls" in told) and ("about 27 A100-hours at Table 2's rate" in told) == rated
    assert ("no time is known" in told) != rated


def test_every_checkpoint_of_a_preset_is_reckoned() -> None:
    def shown(**sweep: list[str]) -> str:
        return "\n".join(preset_lines("cc12m-256", "", PROTOCOLS["cc12m-heldout"], sweep))

    every = shown(checkpoint=["all"])
    assert "20 kept along its training and 1 before its end" in every
    assert f"21 points of 12,400 images, 250 steps: {21 * 12_400 * 250:,} network calls" in every
    assert "of stage 256, its last checkpoint\n1 point of" in shown()
    with pytest.raises(ValueError, match="no run of cc12m-256 is here, so no checkpoint has a name yet; take all"):
        shown(checkpoint=["nimg-000000000008"])


def test_the_same_call_goes_on_and_a_revision_measures_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    extracted: list[int] = []  # images in each call
    extract = EfficientNetLite0.extract

    def counted(self: EfficientNetLite0, images: Any, **options: Any) -> Any:
        extracted.append(len(images))
        return extract(self, images, **options)

    monkeypatch.setattr(EfficientNetLite0, "extract", counted)

    def contents(folder: Path) -> dict[tuple[int, int], bytes]:
        images = ImageFolder(folder)
        return {key: images.read(*key) for key in images.places}

    def draw(module: str, folder: Path, *_: Any) -> None:
        job = from_dict(ImageJob, json.loads((folder / "generate.json").read_text()))
        before = contents(folder / "samples")
        generate_images(folder, job, 0, 1)
        after = contents(folder / "samples")
        drawn.extend({index for index, _ in after.keys() - before.keys()})
        assert after.items() >= before.items()

    for name, value in (("StageProgress", Silent), ("show_metrics", Silent)):
        monkeypatch.setattr(tasks, name, value)
    monkeypatch.setattr(drawing, "run_job", draw)
    for name in ("sample_images", "evaluate_samples"):
        monkeypatch.setattr(sweep, name, getattr(tasks, name).fn)
    nobody: Any = Silent()

    def measured() -> list[dict[str, Any]]:
        planned = plan("small", "embedded", {"steps": ["1", "2"]})
        board(["sample", "evaluate"], lambda line: None)
        drawn.clear()
        return sweep._measure(planned, planned.preset, nobody, lambda line: None)

    first = measured()
    assert len(drawn) == 16 and [point["point"] for point in first] == [f"{LAST}_steps-{s}" for s in "12"]
    # 12 of train, 8 real ones of the captions, 8 samples, 8 of an untrained model and of noise; at the second point
    # what differs is new.
    assert extracted == [12, 8, 8, 8, 8, 8, 8]
    assert measured() == first and drawn == []
    folder = run / "evaluations" / "embedded"
    samples = folder / f"{LAST}_steps-2" / "samples" / "samples"
    assert [path.name for path in samples.iterdir() if path.suffix == ".png"] == [] != list(samples.glob("tars/*.tar"))
    kept = contents(samples)
    ImageFolder(samples).forget({5})  # as a kill leaves it
    assert measured() == first and drawn == [5] and contents(samples) == kept
    assert len({point["protocol_digest"] for point in first}) == 1 and len({point["digest"] for point in first}) == 2
    assert [point["drawn"]["steps"] for point in first] == [1, 2]
    own = own_identity(PRESET, run / "evaluations" / "embedded" / f"{LAST}_steps-1")  # a run's own samples lie alike
    assert own["measured"] == first[0]["measured"]
    assert set(first[0]["recorded"]["data"]) == {"train", "val"} and "torch" in first[0]["recorded"]["versions"]
    assert first[0]["measured"]["networks"]["efficientnet_lite0"][1] == EfficientNetLite0.weights_digest()
    assert json.loads((folder / "results.json").read_text()) == first
    assert [line.split()[0] for line in result_lines(folder)] == [f"{LAST}_steps-{s}" for s in "12"]
    (folder / "results.json").unlink()

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    nobody.send = dies
    with pytest.raises(KeyboardInterrupt):
        measured()
    assert json.loads((folder / "results.json").read_text()) == first[:1]  # what was measured is written down


def test_the_verb_says_what_is_wrong(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "small", "--sweep", "guidance"]) == 1
    assert "is not of the form WHAT=A,B" in capsys.readouterr().err
    assert main(["evaluate", "small", "--protocol", "embedded", "--sweep", "steps=1", "--dry-run"]) == 0
    assert "1 point, 8 images and as many of an untrained model" in capsys.readouterr().out
    assert main(["evaluate", "small", "--protocol", "imagenet-50k"]) == 1
    assert "imagenet-50k measures images of 256 px, and small draws 8, 16 px" in capsys.readouterr().err
    for option in ("--part=1/2", "--processes=2", "--mlflow=sqlite:///x", "--npz"):
        assert main(["evaluate", "small", option]) == 1
        assert f"{option.partition('=')[0]} is of the images that a protocol draws" in capsys.readouterr().err
    assert main(["evaluate"]) == 1 and "name a run" in capsys.readouterr().err
    assert main(["evaluate", "--released", "nothing.pth", "--dry-run"]) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_parts_draw_what_the_whole_does_and_measure_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(module: str, folder: Path, *_: Any) -> None:
        generate_images(folder, from_dict(ImageJob, json.loads((folder / "generate.json").read_text())), 0, 1)

    def contents() -> dict[tuple[int, int], bytes]:
        images = ImageFolder(run / "evaluations" / "embedded" / f"{LAST}_steps-1" / "samples" / "samples")
        return {key: images.read(*key) for key in images.places}

    monkeypatch.setattr(drawing, "run_job", draw)
    small = replace(PRESET, sampling=replace(PRESET.sampling, batch_size=2))  # four batches
    write_json(run / "config.json", to_dict(small))
    asked = ["evaluate", "small", "--protocol", "embedded", "--sweep", "steps=1", "--part"]
    assert main([*asked, "2/3"]) == 0
    assert "part 2/3 is drawn, 12 images of other parts are missing" in capsys.readouterr().out
    assert sorted({index for index, _ in contents()}) == [2, 3]
    folder = run / "evaluations" / "embedded" / f"{LAST}_steps-1" / "samples"
    with part_lock(folder, "images", (1, 3)):
        assert main([*asked, "1/1"]) == 1  # it would draw the same
        assert "part 1/3 of the images" in capsys.readouterr().err
        assert main([*asked, "3/3"]) == 0
    assert main([*asked, "1/3"]) == 0
    assert "part 1/3 is drawn, so are the others; without --part the same command measures" in capsys.readouterr().out
    parts = contents()
    shutil.rmtree(folder)
    assert main([*asked, "1/1"]) == 0 and contents() == parts and len(parts) == 16
    assert not list((run / "evaluations" / "embedded").rglob("results.json"))
    with pytest.raises(SystemExit):
        main([*asked, "4/3"])
    for name in ("16/job.json", "config.json"):
        (run / name).rename(run / f"{name}.away")
    assert sets_of_run(run) == {"squares"}  # by what was drawn of it alone
    (line,) = kept_elsewhere("squares", {"val000"})
    assert line.startswith(f"{run}: 16, evaluations/embedded/{LAST}_steps-1 still show them")
    for name in ("16/job.json", "config.json"):
        (run / f"{name}.away").rename(run / name)
    job, manifest = (
        load_json(run / "16" / "job.json"),
        run.parents[1] / "datasets" / "squares" / "val" / "manifest.json",
    )
    write_json(run / "16" / "job.json", {**job, "val_digest": ""})  # of a version that pinned none
    write_json(manifest, {**load_json(manifest), "digest": "f" * 64})
    capsys.readouterr()
    assert main([*asked, "1/1"]) == 1
    assert f"{run / 'evaluations' / 'embedded'} was begun with another val split" in capsys.readouterr().err


def test_a_copied_home_says_that_it_reads_the_others_set(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, squares = run.parents[1], run.parents[1] / "datasets" / "squares"
    copied = home / "copied"
    write_json_in(run / "samples" / "generate.json", {"text": None, "data": str(squares / "val")})
    write_json_in(run / "samples" / "done.json", {"seconds": 1.0, "images": 16})
    shutil.copytree(run, copied / "runs" / "small")
    for asked in (["--protocol", "embedded", "--dry-run"], ["--dry-run"]):
        monkeypatch.setenv("MDM_HOME", str(home))
        assert main(["evaluate", "small", *asked]) == 0 and "outside MDM_HOME" not in capsys.readouterr().out
        monkeypatch.setenv("MDM_HOME", str(copied))
        assert main(["evaluate", "small", *asked]) == 0
        assert f"the data set is read outside MDM_HOME {copied}: {squares}\n" in capsys.readouterr().out
