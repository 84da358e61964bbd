"""Random numbers by counter: the published ones, normal, and of nothing but seed, draw and level."""

import numpy as np
import pytest
import torch
from scipy import stats

from mdm.diffusion.philox import normal, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of Random123 1.14 (Salmon et al.), philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: str) -> None:
    c0, c1, c2, c3 = map(torch.tensor, counter)
    k0, k1 = map(torch.tensor, key)
    assert " ".join(f"{int(word):08x}" for word in philox((c0, c1, c2, c3), (k0, k1))) == expected


def test_draws_are_normal_and_independent() -> None:
    seeds = torch.tensor([7, 8, 2**62 + 7])  # the last differs from the first in its upper half alone
    draws = torch.stack([normal(seeds, draw, level, (3, 64, 64)) for draw in (0, 1) for level in (0, 1)])
    rows = draws.reshape(12, -1).double().numpy()
    assert stats.kstest(rows.ravel(), "norm").pvalue > 0.01
    correlations = np.corrcoef(np.concatenate([rows, rows[:, ::-1]]))  # with one another, and with themselves turned
    assert abs(correlations - np.eye(24)).max() < 5 / rows.shape[1] ** 0.5
    assert abs(np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1]) < 5 / rows.size**0.5


def test_a_row_depends_on_its_seed_alone_and_any_shape_has_its_own_beginning() -> None:
    together = normal(torch.tensor([3, 4, 5]), 2, 1, (3, 5, 5))
    assert torch.equal(normal(torch.tensor([4]), 2, 1, (3, 5, 5))[0], together[1])
    assert torch.equal(normal(torch.tensor([4]), 2, 1, (74,))[0], together[1].flatten()[:74])
    assert together.dtype == torch.float32 and together.isfinite().all()
