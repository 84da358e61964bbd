"""A number with the interval that chance leaves it."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964  # 97.5 % point of the standard normal


@dataclass(frozen=True)
class Estimate:
    """The value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def normal(cls, value: float, deviation: float) -> Self:
        """By the value's standard deviation."""
        return cls(value, value - Z_95 * deviation, value + Z_95 * deviation)

    @classmethod
    def mean_of(cls, values: NDArray[np.floating]) -> Self:
        """Of one value per image [N], N >= 2: their mean, whose deviation is theirs / sqrt(N)."""
        return cls.normal(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
