"""Mean and covariance of features that come batch by batch, of any number of processes, and the files they are kept in.

The sums of a new batch are joined to those before by Chan, Golub & LeVeque (1979), about the means rather than about 0,
so nothing cancels: float64 throughout, whatever the batches are.
"""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.arrays import LARGEST, Features, check_features, float64_blocks, real_array
from mdm.files import whole_file


class Moments:
    """Of features [., D] seen so far: ``count``, ``mean`` [D], and ``scatter`` [D, D] = sum of (x - mean)(x - mean)'.

    Any split into batches and processes gives the same up to rounding; bit for bit the same only in the same order.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"features have at least one dimension, not {dim}")
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    def add(self, batch: Features) -> None:
        """Features [B, D]; hundreds of rows at once are cheapest, as every batch costs D² numbers. ValueError for a
        batch that is not finite or has another width, before anything is added."""
        checked = check_features(batch, "batch", fewest=1)
        self._check_width(checked.shape[1])
        for _, rows in float64_blocks(checked):
            mean = rows.mean(axis=0)
            centred = rows - mean
            self._join(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Adds what another process has seen. ValueError for features of another width."""
        self._check_width(len(other.mean))
        self._join(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """[D, D], the unbiased one (N - 1). ValueError before the second image."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, there are {self.count}")
        return self.scatter / (self.count - 1)

    def save(self, file: Path) -> None:
        """Writes ``mu`` and ``sigma`` as the ADM and EDM chains do (.npz), and ``count``; atomically."""
        with whole_file(file) as target:
            np.savez(target, mu=self.mean, sigma=self.covariance, count=self.count)

    @classmethod
    def load(cls, file: Path) -> "Moments":
        """What save wrote, to go on with. ValueError naming a file that is damaged or of another chain: those do not
        say of how many images they are, so they can be compared with (``load_statistics``) and not added to."""
        mean, covariance = load_statistics(file)
        with np.load(file) as arrays:
            if "count" not in arrays:
                raise ValueError(f"{file}: does not say of how many images it is, so nothing can be added to it")
            count = arrays["count"]
        if count.shape or count.dtype.kind not in "iu" or count < 2:
            raise ValueError(f"{file}: its count of images is no whole number of at least 2")
        moments = cls(len(mean))
        moments._join(int(count), mean, covariance * (int(count) - 1))
        return moments

    def _check_width(self, dim: int) -> None:
        if dim != len(self.mean):
            raise ValueError(f"features of different width: {dim} added to {len(self.mean)}")

    def _join(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        total = self.count + count
        if count:
            apart = mean - self.mean
            self.scatter += scatter
            self.scatter += np.outer(apart, apart * (self.count * count / total))
            self.mean = self.mean + apart * (count / total)
        self.count = total


def check_moments(
    mean: NDArray[np.floating], covariance: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A mean [D] and a covariance [D, D] in float64. Raises ValueError for other types and shapes, numbers that are not
    finite and below 1e25, and a matrix that is not symmetric or has a negative diagonal."""
    m, s = (
        np.asarray(real_array(numbers, name), np.float64)
        for numbers, name in ((mean, "mean"), (covariance, "covariance"))
    )
    if m.ndim != 1 or not len(m) or s.shape != (len(m), len(m)):
        raise ValueError(f"a mean [D] and a covariance [D, D] are needed, not {list(m.shape)} and {list(s.shape)}")
    if not ((np.abs(m) < LARGEST).all() and (np.abs(s) < LARGEST).all()):
        raise ValueError(f"the mean or the covariance has numbers that are not finite and below {LARGEST:g}")
    if np.abs(s - s.T).max() > 1e-6 * np.abs(s).max():
        raise ValueError("not a covariance: it is not symmetric")
    if s.diagonal().min() < 0:
        raise ValueError(f"not a covariance: a variance is {s.diagonal().min():.3g}")
    return m, s


def _no_npz(file: Path) -> str:
    if not file.is_file():
        return "is no file" if file.exists() else "is missing"
    with file.open("rb") as opened:
        begins = opened.read(2)
    if begins in (b"", b"PK"):
        return "is cut off" if begins else "is empty"
    return "is no .npz (pickled statistics are refused, as a pickle can run any program)"


def load_statistics(file: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and covariance [D, D] of an .npz with ``mu`` and ``sigma``: ours, ADM's, EDM's, clean-fid's.

    Pickled statistics, as EDM2 writes, are refused: a pickle can run any program. ValueError naming the file, as
    check_moments too.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} {_no_npz(file)}")
    try:
        with np.load(file) as arrays:
            mean, covariance = arrays["mu"], arrays["sigma"]
    except KeyError as error:
        raise ValueError(f"{file} holds no statistics: {error.args[0]}") from None
    except Exception as error:  # zipfile, zlib and numpy raise whatever they stumble over
        raise ValueError(f"{file} is damaged: {error}") from error
    try:
        return check_moments(mean, covariance)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
