import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.frechet import frechet_distance, frechet_distance_from_moments
from evaluation.statistics.moments import Moments, load_statistics


def features() -> NDArray[np.float32]:
    """Far from 0 beside their spread, where sums about 0 lose their digits."""
    return (np.random.default_rng(0).normal(size=(3000, 5)) + 1e4).astype(np.float32)


def of(*batches: NDArray[np.floating]) -> Moments:
    moments = Moments(batches[0].shape[1])
    for batch in batches:
        moments.add(batch)
    return moments


@pytest.mark.parametrize("size", [1, 7, 3000])
def test_batches_give_what_the_whole_gives(size: int) -> None:
    x = features()
    moments = of(*(x[i : i + size] for i in range(0, len(x), size)))
    assert moments.count == 3000
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=0, atol=1e-11)


def test_processes_are_merged() -> None:
    x = features()
    whole, parts = of(x), [of(part) for part in np.split(x, [10, 11, 2000])]
    total = Moments(5)  # of a process that saw nothing
    for part in [*parts, Moments(5)]:
        total.merge(part)
    assert total.count == whole.count
    np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(total.covariance, whole.covariance, rtol=0, atol=1e-11)


def test_a_wrong_batch_changes_nothing() -> None:
    moments = of(features())
    with pytest.raises(ValueError, match="batch: 1 of 2 rows"):
        moments.add(np.array([[1, 2, 3, 4, 5], [np.nan] * 5]))
    with pytest.raises(ValueError, match="different width: 4 added to 5"):
        moments.add(np.ones((2, 4)))
    with pytest.raises(ValueError, match="different width: 4 added to 5"):
        moments.merge(Moments(4))
    assert moments.count == 3000
    with pytest.raises(ValueError, match="at least 2 images, there are 1"):
        _ = of(np.ones((1, 4))).covariance


def test_kept_statistics_give_the_same_distance_and_go_on(tmp_path: Path) -> None:
    x, file = features(), tmp_path / "reference.npz"
    of(x[:2000]).save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]
    again = Moments.load(file)
    assert frechet_distance_from_moments(*load_statistics(file), again.mean, again.covariance) < 1e-13
    again.add(x[2000:])
    assert again.count == 3000
    np.testing.assert_allclose(again.covariance, of(x).covariance, rtol=0, atol=1e-11)


def test_statistics_of_other_chains_are_read(tmp_path: Path) -> None:
    """ADM's files hold images and the moments of another layer too, EDM's only these two."""
    x, y = np.random.default_rng(0).normal(size=(2, 50, 4))
    file = tmp_path / "adm.npz"
    np.savez(file, arr_0=np.zeros((2, 8, 8, 3), np.uint8), mu=x.mean(0), sigma=np.cov(x.T), mu_s=0, sigma_s=0)
    found = frechet_distance_from_moments(y.mean(0), np.cov(y.T), *load_statistics(file))
    assert found == pytest.approx(frechet_distance(y, x), abs=1e-12)
    with pytest.raises(ValueError, match=r"adm.npz: does not say of how many images"):
        Moments.load(file)


def test_files_that_are_no_statistics_are_named(tmp_path: Path) -> None:
    file = tmp_path / "img512.npz"
    with pytest.raises(ValueError, match=r"img512.npz is missing"):
        load_statistics(file)
    file.write_bytes(pickle.dumps({"fid": {"mu": 0, "sigma": 1}}))
    with pytest.raises(ValueError, match=r"img512.npz is no .npz \(pickled statistics are refused"):
        load_statistics(file)
    for begins, says in ((b"", "is empty"), (b"PK\x03\x04 and no more", "is cut off")):
        file.write_bytes(begins)
        with pytest.raises(ValueError, match=f"img512.npz {says}"):
            load_statistics(file)
    with pytest.raises(ValueError, match="is no file"):
        load_statistics(tmp_path)
    for count in (-7, 1, 5.9, [3, 4], np.nan, "abc"):
        np.savez(file, mu=np.zeros(2), sigma=np.eye(2), count=count)
        with pytest.raises(ValueError, match=r"img512.npz: its count of images is no whole number of at least 2"):
            Moments.load(file)
    np.savez(file, mu=np.array([None]), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r"img512.npz is damaged: Object arrays cannot be loaded"):
        load_statistics(file)
    np.savez(file, arr_0=np.zeros(3))
    with pytest.raises(ValueError, match=r"img512.npz holds no statistics"):
        load_statistics(file)
    np.savez(file, mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(ValueError, match=r"img512.npz: a mean \[D\] and a covariance \[D, D\] are needed"):
        load_statistics(file)
    of(features()).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + bytes(50) + whole[250:])
    with pytest.raises(ValueError, match=r"img512.npz is damaged"):
        load_statistics(file)
