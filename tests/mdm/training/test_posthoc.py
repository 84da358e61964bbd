"""Post-hoc EMA: averages rebuilt from snapshots beside the same averages tracked directly."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mdm.network.nested import NestedUNet
from mdm.network.weights import load_weights
from mdm.training.ema import LENGTHS, PowerAverages
from mdm.training.posthoc import (
    FOLDER,
    Profile,
    Snapshot,
    best_fit,
    fit,
    list_snapshots,
    product,
    rebuild,
    write_snapshot,
)
from small import small_model

STEPS, BATCH = 3000, 8
OTHERS = (0.03, 0.04, 0.07, 0.15, 0.20)


def walk(kind: str) -> Iterator[Tensor]:
    """Weights [64] after every step: wandering ever further, or trembling around zero."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, generator=generator, dtype=torch.float64)
    for _ in range(STEPS):
        weights = weights * (1 if kind == "wander" else 0.99) + 0.05 * torch.randn(64, generator=generator)
        yield weights


@pytest.fixture(scope="module", params=["wander", "tremble"])
def history(request: pytest.FixtureRequest) -> tuple[PowerAverages, dict[Profile, Tensor]]:
    """Every length tracked directly to the end, and 20 snapshots of the two lengths that a training tracks."""
    averages = PowerAverages({"w": torch.zeros(64)}, (*LENGTHS, *OTHERS))
    snapshots = {}
    for i, weights in enumerate(walk(request.param)):
        averages.update([weights.float()], (i + 1) * BATCH, BATCH)
        if (i + 1) % (STEPS // 20) == 0:
            for length in LENGTHS:
                snapshots[Profile((i + 1) * BATCH, length)] = averages.weights[length]["w"].clone()
    return averages, snapshots


def test_other_lengths_come_within_a_percent(history: tuple[PowerAverages, dict[Profile, Tensor]]) -> None:
    averages, snapshots = history
    stored = [Snapshot(profile, Path()) for profile in snapshots]
    for length in (*OTHERS, *LENGTHS):
        found = fit(stored, Profile(STEPS * BATCH, length))
        found.check()
        rebuilt = sum(w * snapshots[s.profile].double() for w, s in zip(found.weights, found.snapshots, strict=True))
        direct = averages.weights[length]["w"].double()
        error = float((rebuilt - direct).norm() / direct.norm())
        assert error < (1e-6 if length in LENGTHS else 0.015), (length, error, found.error)
        assert sum(found.weights) == pytest.approx(1, abs=1e-9)


def test_a_moment_before_the_end_is_rebuilt_from_what_was_there_by_then(
    history: tuple[PowerAverages, dict[Profile, Tensor]],
) -> None:
    _, snapshots = history
    moment = STEPS * BATCH // 2
    found = fit([Snapshot(profile, Path()) for profile in snapshots], Profile(moment, 0.05))
    assert {s.profile.nimg for s in found.snapshots} == {n * STEPS * BATCH // 20 for n in range(1, 11)}
    assert found.error < 1e-6
    with pytest.raises(ValueError, match="no snapshot at 10 images or before"):
        fit(found.snapshots, Profile(10, 0.05))


def test_too_few_snapshots_or_a_length_too_far_are_refused() -> None:
    stored = [Snapshot(Profile(nimg, length), Path()) for nimg in (500, 1000) for length in LENGTHS]
    fit(stored, Profile(1000, 0.06)).check()
    for wanted in (Profile(1000, 0.2), Profile(1000, 0.02), Profile(1100, 0.05)):
        with pytest.raises(ValueError, match=r"4 snapshots, the newest at 1000 images, miss .* more than the 5%"):
            fit(stored, wanted).check()
    with pytest.raises(ValueError, match="at most 0"):
        fit(stored, Profile(1000, 0.5))


def test_the_closed_inner_product_is_the_integral() -> None:
    a, b = Profile(600, 0.05), Profile(1000, 0.1)
    t = (torch.arange(600_000, dtype=torch.float64) + 0.5) / 1000

    def values(profile: Profile) -> Tensor:
        gamma = {0.05: 16.972198602, 0.1: 6.937203938}[profile.sigma_rel]
        return (gamma + 1) * (t / profile.nimg) ** gamma / profile.nimg

    assert product(a, b) == product(b, a) == pytest.approx(float((values(a) * values(b)).sum() / 1000), rel=1e-8)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, PowerAverages]:
    """A run folder with snapshots of a real network at 8, 16, 24, 32 images."""
    torch.manual_seed(0)
    network = NestedUNet(small_model(1))
    averages = PowerAverages(dict(network.named_parameters()))
    for step in range(1, 5):
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        averages.update(list(network.parameters()), step * 8, 8)
        write_snapshot(tmp_path / "run", step * 8, network.config, averages.weights)
    return tmp_path / "run", averages


def test_a_tracked_length_comes_back_as_a_weights_folder(run: tuple[Path, PowerAverages], tmp_path: Path) -> None:
    folder, averages = run
    found = rebuild(folder, 0.1, None, tmp_path / "out")
    assert (found.wanted, len(found.snapshots)) == (Profile(32, 0.1), 8)
    model, weights = load_weights(tmp_path / "out")
    assert model == small_model(1)
    for name, tensor in averages.weights[0.1].items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-6)
    NestedUNet.from_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "average.json").read_text())["snapshots"].keys() >= {
        "nimg-000000000008/0.050.safetensors",
        "nimg-000000000032/0.100.safetensors",
    }
    with pytest.raises(ValueError, match="exists already"):
        rebuild(folder, 0.1, None, tmp_path / "out")


def test_what_is_half_written_or_damaged_is_left_out(run: tuple[Path, PowerAverages], tmp_path: Path) -> None:
    folder, _ = run
    newest = folder / FOLDER / "nimg-000000000032"
    shutil.copytree(newest, folder / FOLDER / "nimg-000000000040.tmp")
    (newest / "0.050.safetensors").write_bytes(b"")
    snapshots, passed_over = list_snapshots(folder)
    assert {s.profile.nimg for s in snapshots} == {8, 16, 24}
    assert passed_over == ["nimg-000000000032 is damaged (0.050.safetensors is not what was written): left out"]
    found = best_fit(folder, 0.05)
    assert (found.wanted.nimg, found.passed_over) == (24, tuple(passed_over))
    with pytest.raises(ValueError, match="more than the 5%"):
        rebuild(folder, 0.05, 32, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_snapshot_is_replaced_when_a_run_repeats_itself(run: tuple[Path, PowerAverages]) -> None:
    folder, averages = run
    for tensor in averages.weights[0.05].values():
        tensor.zero_()
    write_snapshot(folder, 32, small_model(1), averages.weights)
    shutil.copytree(folder / FOLDER / "nimg-000000000032", folder / FOLDER / "nimg-000000000032.bak")
    assert len(list_snapshots(folder)[0]) == 8
    assert not list((folder / FOLDER).glob("*.tmp"))


def test_a_run_without_snapshots_is_told_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cadence\.average_every_nimg above 0"):
        rebuild(tmp_path, 0.05, None, tmp_path / "out")
