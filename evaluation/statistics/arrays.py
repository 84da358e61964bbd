"""What every metric asks of its arrays of features, and reading them block by block: they may be memory-mapped."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [N, D], a row per image

BLOCK = 1024  # rows: 16 MB of 2048 features in float64; faster is none of 512 … 4096
# Of more, the square of the sixth power that the cubic kernel takes, of which KID's interval is made, leaves float64.
LARGEST = np.float64(1e25)


def check_features(features: Features, name: str, fewest: int = 2) -> Features:
    """The features, uncopied. Raises ValueError, calling them ``name``, unless they are [N, D] real numbers, all finite
    and below 1e25, N >= ``fewest`` and D >= 1.

    Checked before any linear algebra: one NaN is enough to make a matrix square root spin for minutes.
    """
    array = real_array(features, name)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name}: features must be [N, D], not {list(array.shape)}")
    if len(array) < fewest:
        raise ValueError(f"{name}: at least {fewest} images are needed, there are {len(array)}")
    bad = np.concatenate([~(np.abs(array[block]) < LARGEST).all(axis=1) for block in blocks(len(array))])
    if bad.any():
        raise ValueError(
            f"{name}: {bad.sum()} of {len(array)} rows of features are not finite numbers below {LARGEST:g} "
            f"(first: {bad.argmax()})"
        )
    return array


def real_array(numbers: NDArray[np.floating], name: str) -> NDArray[np.floating]:
    """The numbers, uncopied. Raises ValueError, calling them ``name``, for what is no array of real numbers."""
    try:
        array = np.asanyarray(numbers)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor that is half precision, or on a device
        raise ValueError(f"{name}: no array of NumPy's ({error})") from error
    if isinstance(array, np.ma.MaskedArray):  # comparisons, and some metrics, would pass over what it hides
        raise ValueError(f"{name}: a masked array: leave out what it hides")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: real numbers are needed, not {array.dtype}")
    return array


def check_pair(
    x: Features, y: Features, names: tuple[str, str] = ("samples", "reference"), fewest: int = 2
) -> tuple[Features, Features]:
    """Two sets of features of one width; ValueError as check_features."""
    x, y = check_features(x, names[0], fewest), check_features(y, names[1], fewest)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]} have features of different width: {x.shape[1]} and {y.shape[1]}")
    return x, y


def blocks(count: int, rows: int = BLOCK) -> Iterator[slice]:
    """The rows 0 … count - 1 in order, at most ``rows`` at once."""
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def float64_blocks(features: Features, rows: int = BLOCK) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Which rows, and these rows in float64, whatever the features are kept in."""
    return ((block, np.asarray(features[block], np.float64)) for block in blocks(len(features), rows))
