"""A protocol from drawn pictures to its numbers, by networks of random weights."""

import errno
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from evaluation.clip_score import clip_score
from evaluation.cmmd import cmmd
from evaluation.fid_infinity import fid_infinity
from evaluation.frechet import Gaussian, frechet_distance
from evaluation.images.captions import Prompt, assign, read_lines
from evaluation.images.image_folder import ImageFolder
from evaluation.images.preparation import Drawn, Noise, Pictures, Reference, adm_centre_crop
from evaluation.inception_score import inception_score
from evaluation.kid import kid
from evaluation.measuring import kept, standard
from evaluation.measuring.identity import Origin, way_of
from evaluation.measuring.networks import NETWORKS, load_networks, missing
from evaluation.measuring.protocol_metrics import DISTANCES, Classifier, FeatureSets, TextReader, roles, short
from evaluation.measuring.standard import measure_standard
from evaluation.networks.clip import Clip
from evaluation.networks.features import Extractor, RandomFeatures
from evaluation.networks.inception import InceptionV3
from evaluation.prdc import prdc
from evaluation.protocols import PROTOCOLS
from evaluation.relative import apart, relative_to_real
from evaluation.results import Result
from made import write_originals
from mdm.config import Sampling
from mdm.data.ranges import average
from mdm.data.shards import Shards
from mdm.files import load_json
from preprocessing.remove import find, take_out

COCO = PROTOCOLS["coco2014-val-30k"]
N, M = 64, 130
ORIGIN = Origin(Sampling(), 0, {})


class Counting(RandomFeatures):
    """Notes how many pictures it has seen, and breaks off where it is told to."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.seen, self.breaks_at = 0, -1

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if self.seen == self.breaks_at:
            raise RuntimeError("killed")
        self.seen += len(images)
        return super().features(images)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features[:, :10]

    def text_features(self, captions: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([np.random.default_rng(len(c)).normal(size=self.dim).astype(np.float32) for c in captions])


def make_networks() -> dict[str, Extractor]:
    return {role: Counting(16 + i) for i, role in enumerate(NETWORKS)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``split``: 130 real pictures; ``images``: 64 drawn for their first captions at 256 px."""
    root = tmp_path_factory.mktemp("standard")
    write_originals(root / "split", M, "coco2014-val")
    prompts = [Prompt(key=f"real{i:03d}", caption=f"a caption of{' many' * i} words") for i in range(N)]
    assign(root / "images", prompts, 0)
    noise = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    whole = torch.nn.functional.interpolate(noise, size=(256, 256))
    ImageFolder(root / "images").save([noise, whole], range(N), range(N), loose=True)
    return root


@pytest.fixture(scope="module")
def once(made: Path) -> dict[str, Any]:
    return measured(made, made / "once", make_networks(), made / "references")


def measured(made: Path, out: Path, networks: dict[str, Extractor], references: Path, **other: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"protocol": COCO, "images": made / "images", "reference": Shards(made / "split")}
    asked |= {"networks": networks, "out": out, "references": references, "origin": ORIGIN, "for_tests": True, **other}
    return measure_standard(progress=lambda what, done, total: None, **asked)


def seen(networks: dict[str, Extractor]) -> list[int]:
    return [network.seen for network in networks.values() if isinstance(network, Counting)]


def test_numbers_are_those_of_the_plain_functions(made: Path, once: dict[str, Any]) -> None:
    found = {row["name"].removeprefix("random_"): row["values"] for row in once["random_metrics"]}
    networks, lines = make_networks(), read_lines(made / "images")
    drawn, real = (
        Drawn.open(made / "images", COCO.preparation),
        Reference.open([Shards(made / "split")], COCO.preparation, 256),
    )
    sources: dict[str, Pictures] = {"samples": drawn, "noise": Noise(N, 256, 0), "real": real}
    pictures = {what: np.concatenate(list(source.batches(0, len(source)))) for what, source in sources.items()}
    assert pictures["real"].shape == (M, 3, 256, 256)
    of = {role: {what: e.extract(p) for what, p in pictures.items()} for role, e in networks.items()}

    clean, legacy = of["inception_v3_clean"], of["inception_v3_legacy"]
    for resize, sets in (("clean", clean), ("legacy", legacy)):
        fid = found[f"fid_64_{resize}"]
        assert fid["samples"] == frechet_distance(sets["samples"], sets["real"])
        assert fid["noise"] == frechet_distance(sets["noise"], sets["real"])
        some, others = apart(sets["real"], N, M - N)
        assert fid["real images"] == frechet_distance(some, others)
        assert fid["samples beside real images"] == frechet_distance(sets["samples"], others)
        infinite = fid_infinity(sets["samples"], Gaussian.of_features(sets["real"])).estimate
        assert found[f"fid_infinity_64_{resize}"]["samples"] == infinite.value
    assert found["kid_64_clean"]["samples"] == kid(clean["samples"], clean["real"]).value
    assert found["inception_score_64_legacy"]["samples"] > 1
    order = np.random.default_rng(0).permutation(N)
    logits = legacy["samples"][order][:, :10]
    assert found["inception_score_64_legacy"]["samples"] == pytest.approx(inception_score(softmax(logits, axis=1)).mean)
    of_cmmd = of["clip_vit_l_14_336_cmmd"]
    assert found["cmmd_64"]["samples"] == cmmd(of_cmmd["samples"], of_cmmd["real"]).value
    dino = of["dinov2_vit_l_14"]
    assert found["fd_dinov2_64"]["samples"] == frechet_distance(dino["samples"], dino["real"])
    some, others = apart(legacy["real"], N, N)
    assert found["recall_64_legacy"]["samples"] == prdc(others, legacy["samples"]).recall
    assert found["recall_64_legacy"]["real images"] == prdc(others, some).recall
    rows = [standard.json.loads(line) for line in (made / "once" / "cosines.jsonl").read_text().splitlines()]
    for size in ("b_32", "b_16", "l_14"):
        network = networks[f"clip_vit_{size}"]
        assert isinstance(network, Counting)
        text = network.text_features([line.caption for line in lines])
        expected = clip_score(of[f"clip_vit_{size}"]["samples"], text)
        assert found[f"clip_score_64_vit_{size}"]["samples"] == expected.mean.value
        assert [row["cosines"][f"clip_vit_{size}"] for row in rows] == expected.cosines.tolist()
    assert [row["key"] for row in rows] == [line.key for line in lines]
    spaces = ("inception_v3_legacy", "dinov2_vit_l_14", "clip_vit_l_14_336_cmmd")
    samples, reals = ({space: of[space][what] for space in spaces} for what in ("samples", "real"))
    assert found["relative_64"]["samples"] == relative_to_real(frechet_distance, samples, reals, N)
    assert found["relative_64"]["noise"] > 0 and found["relative_64"]["real images"] == 1
    assert len(found) == 2 + 2 + 1 + 4 + 1 + 1 + 1 + 3 + 1
    assert load_json(made / "once" / "results.json") == once
    assert short(30_000) == "30k" and short(1_000) == "1k"


def test_killed_in_the_middle_it_goes_on_and_finds_the_same(made: Path, once: dict[str, Any], tmp_path: Path) -> None:
    networks = make_networks()
    last = networks["dinov2_vit_l_14"]
    assert isinstance(last, Counting)
    for kill in (64, M + N + 32):  # in the real images, and in the samples
        last.breaks_at = kill
        with pytest.raises(RuntimeError, match="killed"):
            measured(made, tmp_path / "out", networks, tmp_path / "references")
    last.breaks_at = -1
    again = measured(made, tmp_path / "out", networks, tmp_path / "references")
    assert again == once and last.seen == M + N + 32 + N  # a kill costs the block that it falls into
    assert not list(tmp_path.glob("*/*.part"))
    third = make_networks()
    assert measured(made, tmp_path / "out", third, tmp_path / "references") == once
    assert seen(third) == [0] * len(third)


def test_features_of_other_images_are_deleted_where_they_are_the_measurements_own(
    made: Path, once: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "once", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    features = tmp_path / "out" / "features"
    before = {path.name for path in features.iterdir()}
    (features / "samples-0123.part").mkdir()
    for name in ("samples-random_16-0123.npy", "samples-random_16-0123.json", "captions-random_18-0123.npy"):
        (features / name).touch()
    networks = make_networks()
    assert measured(made, Path("out"), networks, made / "references") == once and not any(seen(networks))
    assert {path.name for path in features.iterdir()} == before != set()


def test_what_is_known_of_a_reference_is_used_by_other_runs(made: Path, once: dict[str, Any], tmp_path: Path) -> None:
    """For another run all but the samples is there; of another revision the real images are measured anew."""
    networks = make_networks()
    assert measured(made, tmp_path / "a", networks, made / "references") == once
    assert set(seen(networks)) == {N}
    shutil.copytree(made / "split", tmp_path / "split")
    take_out(tmp_path / "split", find(tmp_path / "split", {"real129"}))
    networks = make_networks()
    other = measured(made, tmp_path / "b", networks, made / "references", reference=Shards(tmp_path / "split"))
    assert sorted(set(seen(networks))) == [N, N + M - 1] and other["real_images"] == M - 1
    assert other["protocol_digest"] != once["protocol_digest"]


def test_what_decides_a_number_is_in_its_digest(made: Path, once: dict[str, Any], tmp_path: Path) -> None:
    other = measured(made, tmp_path, make_networks() | {"clip_vit_b_32": Counting(40)}, made / "references")
    assert other["protocol_digest"] != once["protocol_digest"]
    assert {**other["measured"], "networks": once["measured"]["networks"]} == once["measured"]
    guided = replace(ORIGIN, sampling=Sampling(guidance=(1.35,), batch_size=4), seed=ORIGIN.seed + 1)
    drawn = measured(made, made / "once", make_networks(), made / "references", origin=guided)
    assert drawn["protocol_digest"] == once["protocol_digest"] and drawn["digest"] != once["digest"]
    assert way_of(drawn["drawn"]).guidance == "1.35" and "seed" in way_of(drawn["drawn"]).sampler


def test_the_released_protocol_measures_against_the_prompts_own_pictures(made: Path, tmp_path: Path) -> None:
    found = measured(made, tmp_path, make_networks(), tmp_path, protocol=PROTOCOLS["mdm-released"])
    assert found["real_images"] == N
    fid = found["random_metrics"][0]
    read = [line.caption[:77] for line in read_lines(made / "images")]  # in letters, as the script cuts them
    network = make_networks()["clip_vit_b_16"]
    of_images = network.extract(np.concatenate(list(Drawn.open(made / "images", "as drawn").batches(0, N))))
    assert isinstance(network, Counting) and max(len(line.caption) for line in read_lines(made / "images")) > 77
    clip = found["random_metrics"][-1]["values"]["samples"]
    assert clip == clip_score(of_images, network.text_features(read)).mean.value
    assert fid["name"] == "random_fid_64_legacy" and "real images" in fid["values"]


def of_metric(name: str, n: int, m: int, dim: int = 20, shift: float = 0.0) -> list[Result]:
    """A metric of n samples against m real images, both of one distribution but for the samples' shift."""
    random = np.random.default_rng(n)
    samples, noise, real = (random.normal(size=(count, dim)).astype(np.float32) for count in (n, n, m))
    role, measure = DISTANCES[name]
    return measure(FeatureSets(make_networks()[role], samples + np.float32(shift), 9 * noise, real, 0))


@pytest.mark.parametrize("name", ["fid_clean", "fd_dinov2", "kid"])
@pytest.mark.parametrize(
    ("n", "m", "floor"),
    [
        (40, 1000, "40 real images against 960 others"),  # imagenet-50k's ratio
        (60, 81, "40 real images against 41 others"),  # coco2014-val-30k's
        (80, 80, "40 real images against 40 others"),  # mdm-released's, cc12m-heldout's
    ],
)
def test_a_perfect_model_is_at_its_floor_whatever_the_ratio(name: str, n: int, m: int, floor: str) -> None:
    for perfect, worse in zip(of_metric(name, n, m), of_metric(name, n, m, shift=1.0), strict=True):
        if "infinity" in perfect.metric.name:  # of a line through 15 points of 4 samples and more
            continue
        noise = perfect.values["noise"]
        real, beside = perfect.values["real images"], perfect.values["samples beside real images"]
        assert abs(beside - real) < 0.02 * noise and worse.values["samples beside real images"] > 3 * abs(real)
        assert floor in perfect.metric.note
        assert perfect.sizes == {"real images": 40, "samples beside real images": 40}
        low, high = perfect.intervals["samples"]
        assert low < perfect.values["samples"] < high


def test_where_the_reference_is_too_small_for_a_floor_that_is_said() -> None:
    for found in of_metric("fid_clean", 40, 59):
        assert "real images" not in found.values and "the reference has 59 images, 60 are needed" in found.metric.note
    assert {found.n for found in of_metric("prdc", 40, 59)} == {29}  # of each of three sets


def test_every_metric_but_shares_and_ratios_has_an_interval(once: dict[str, Any], made: Path) -> None:
    found = {row["name"].removeprefix("random_"): row for row in once["random_metrics"]}
    without = {name for name, row in found.items() if "samples" not in row["interval"]}
    assert without == {*(f"{part}_64_legacy" for part in ("precision", "recall", "density", "coverage")), "relative_64"}
    parts = np.random.default_rng(0).dirichlet(np.ones(10), 400)
    splits = [inception_score(parts[i : i + 40], 1).mean for i in range(0, 400, 40)]
    role, measure = DISTANCES["inception_score"]
    network = make_networks()[role]
    logits = np.log(parts).astype(np.float32)[np.argsort(np.random.default_rng(0).permutation(400))]
    (row,) = measure(FeatureSets(network, logits, logits, logits, 0))
    low, high = row.intervals["samples"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(splits, ddof=1) / 10**0.5, rel=1e-3)


def test_as_drawn_real_images_are_averaged_to_the_samples_resolution(made: Path, squares: Path, tmp_path: Path) -> None:
    """Of both splits, 32 px, beside images of 16 px."""
    assign(tmp_path / "images", [Prompt(key=f"val{i:03d}", caption=f"caption {i}") for i in range(32)], 0)
    drawn = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ImageFolder(tmp_path / "images").save([drawn[..., ::2, ::2], drawn], range(32), range(32))
    splits, networks = [Shards(squares / split) for split in ("train", "val")], make_networks()
    asked = {"protocol": PROTOCOLS["cc12m-heldout"], "images": tmp_path / "images", "reference": splits}
    found = measured(made, tmp_path / "out", networks, tmp_path / "references", **asked)
    pictures = torch.stack([average(shards[i].image, 16) for shards in splits for i in range(len(shards))])
    samples = torch.from_numpy(np.concatenate(list(Drawn.open(tmp_path / "images", "as drawn").batches(0, 32))))
    network = networks["dinov2_vit_l_14"]
    expected = frechet_distance(network.extract(samples), network.extract(pictures))
    assert found["real_images"] == 49 and found["measured"]["px"] == 16
    rows = {row["name"]: row["values"] for row in found["random_metrics"]}
    assert rows["random_fd_dinov2_32"]["samples"] == expected
    few, fresh = {**asked, "reference": splits[1]}, make_networks()
    with pytest.raises(ValueError, match="val: 9 real images to measure against, 30 at least are needed"):
        measured(made, tmp_path / "few", fresh, tmp_path / "references", **few)
    assert not any(seen(fresh))


def test_the_published_networks_can_what_is_asked_of_them() -> None:
    assert issubclass(InceptionV3, Classifier) and issubclass(Clip, TextReader)


def test_random_weights_reach_no_report(made: Path, once: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"random_16, .*: random weights, for tests only: nothing is measured"):
        measured(made, tmp_path, make_networks(), tmp_path, for_tests=False)
    assert "metrics" not in once and all(row["name"].startswith("random_") for row in once["random_metrics"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("cut", "00003.png: it is cut off. Delete it"),
        ("text", "00003.png: it is no PNG that can be read .*. Delete it"),
        ("small", "00003.png: 64x64 px, not 256x256. Delete it"),
        ("grey", "00003.png: not plain RGB of 8 bits, as what was drawn is. Delete it"),
        ("gone", "00003.png is missing, one of 1 that are, of 64. The command that drew the others draws them"),
        ("stray", "holiday.jpg is no image of .*captions.jsonl: move it away"),
        ("level", r"images: images of 256 px are measured, there are \[8\]"),
        ("few", "2 images are measured, a protocol needs at least 30"),
    ],
)
def test_a_wrong_image_is_named_before_any_work(made: Path, tmp_path: Path, damage: str, says: str) -> None:
    images = shutil.copytree(made / "images", tmp_path / "images")
    level = images / "levels" / "256"
    file, networks = level / "00003.png", make_networks()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "text":
        file.write_text("no picture")
    elif damage == "small":
        Image.new("RGB", (64, 64)).save(file)
    elif damage == "grey":
        Image.new("L", (256, 256), 7).save(file)
    elif damage == "gone":
        file.unlink()
    elif damage == "stray":
        Image.new("RGB", (256, 256)).save(level / "holiday.jpg")
    elif damage == "level":
        shutil.rmtree(level)
    else:
        assign(images, [Prompt(key=line.key, caption=line.caption) for line in read_lines(images)[:2]], 0)
    with pytest.raises(ValueError, match=says) as raised:
        measured(made, tmp_path / "out", networks, tmp_path / "references", images=images)
    assert "\n" not in str(raised.value) and not any(seen(networks))


def test_what_else_is_refused(made: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(says: str, networks: dict[str, Extractor] | None = None, **other: Any) -> None:
        with pytest.raises(ValueError, match=says):
            measured(made, tmp_path / "out", networks or make_networks(), tmp_path / "references", **other)

    refused("holds pictures of 32 px, not the originals, which are asked for", reference=Shards(squares / "val"))
    few = {role: network for role, network in make_networks().items() if not role.startswith("inception")}
    refused("protocol coco2014-val-30k needs the networks inception_v3_clean, inception_v3_legacy, too", few)
    refused("clip_vit_b_16: reads no captions", make_networks() | {"clip_vit_b_16": RandomFeatures(16)})
    refused("inception_v3_legacy: has no classes", make_networks() | {"inception_v3_legacy": RandomFeatures(16)})
    refused("protocol watch measures .*, which measuring/measure.py does", protocol=PROTOCOLS["watch"])

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "some/file.json")

    monkeypatch.setattr(kept, "write_json", full)
    refused("^some/file.json: No space left on device. Make room: the same command goes on$")


def test_missing_names_everything_at_once(made: Path, squares: Path, tmp_path: Path) -> None:
    lines = missing(COCO, tmp_path, [tmp_path / "split"])
    weights = {f"weights {name}" for name in COCO.networks}
    assert {line.split(":")[0] for line in lines[:-1]} == weights and len(lines) == 7
    assert all("curl -fL -o" in line for line in lines[:-1])
    assert lines[-1].startswith("data set coco2014-val: ") and "`mdm data coco2014-val` makes it" in lines[-1]
    assert missing(replace(COCO, networks=()), tmp_path, [made / "split"]) == []
    assert "not the originals" in missing(replace(COCO, networks=()), tmp_path, [squares / "val"])[0]
    with pytest.raises(ValueError, match=r"weights inception_v3: .* is missing"):
        load_networks(COCO, tmp_path)


def test_protocols_name_the_networks_that_their_metrics_ask_for() -> None:
    for protocol in PROTOCOLS.values():
        if set(protocol.networks) - {"efficientnet_lite0"}:
            rows = {NETWORKS[role][0].name for part in roles(protocol) for role in part}
            assert rows == set(protocol.networks), protocol.name


def test_adm_crop_halves_by_boxes_before_it_is_bicubic() -> None:
    """4 x 6 -> 2: one halving is all. 3 x 3 -> 2: Pillow's bicubic alone, whose weights at 1.5 px a pixel are 0.9375,
    0.5625 and -0.0579 of their sum."""
    rows = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6) * 10
    found = adm_centre_crop(np.repeat(rows[..., None], 3, axis=2), 2)
    assert found[..., 0].tolist() == [[35, 55], [155, 175]]  # of 2 x 3 the left two: (3 - 2) // 2 = 0
    ramp = np.repeat(np.array([[0, 90, 180]] * 3, np.uint8)[..., None], 3, axis=2)
    assert adm_centre_crop(ramp, 2)[..., 1].tolist() == [[28, 152], [28, 152]]
    assert adm_centre_crop(np.zeros((600, 1030, 3), np.uint8), 256).shape == (256, 256, 3)
