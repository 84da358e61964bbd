"""Averages of the weights: what a step moves, what a skipped one leaves alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from mdm.training import ema
from mdm.training.ema import EMA, PowerAverages, gamma_of, power_share


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), nn.Linear(5, 7), nn.LayerNorm(7))


def named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def bits(averages: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: tensor.contiguous().view(torch.int32).flatten().tolist() for name, tensor in averages.items()}


def test_one_step_is_the_fused_lerp_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with ``keep``, whose chunks may be small."""
    monkeypatch.setattr(ema, "CHUNK_BYTES", 100)
    model = network()
    plain, kept = EMA(named(model)), EMA(named(model))
    expected = [average.clone() for average in plain.weights.values()]
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    torch._foreach_lerp_(expected, [p.detach() for p in model.parameters()], 1 - 0.9)
    plain.update(list(model.parameters()), 0.9)
    kept.update(list(model.parameters()), 0.9, torch.ones(()))
    assert bits(dict(zip(plain.weights, expected, strict=True))) == bits(plain.weights)
    assert bits(plain.weights) == bits(kept.weights)


def test_a_skipped_step_leaves_every_bit_even_with_nan_weights() -> None:
    model = network()
    average, powers = EMA(named(model)), PowerAverages(named(model))
    average.weights["0.bias"][0] = -0.0  # adding nothing would turn its sign
    before = [bits(average.weights), *(bits(named) for named in powers.weights.values())]
    for parameter in model.parameters():
        nn.init.constant_(parameter, math.nan)
    average.update(list(model.parameters()), 0.9, torch.zeros(()))
    powers.update(list(model.parameters()), 8, 8, torch.zeros(()))
    assert [bits(average.weights), *(bits(named) for named in powers.weights.values())] == before


def test_chunks_hold_every_tensor_once_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ema, "CHUNK_BYTES", 40)
    tensors = [torch.empty(n) for n in (4, 6, 1, 30, 9, 1, 1)]
    sizes = [[len(t) for t in tensors[part]] for part in ema._chunks(tensors)]
    assert sizes == [[4, 6], [1], [30], [9, 1], [1]]
    assert list(ema._chunks([])) == []


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 12**-0.5])
def test_gamma_gives_the_width_back(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    assert gamma >= 0
    assert math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0, -0.1, 0.3])
def test_a_length_that_no_power_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=r"at most 0\.2887"):
        gamma_of(sigma_rel)


def test_the_average_is_the_power_function_s_of_all_weights_so_far() -> None:
    """Sum of t^gamma weights over sum of t^gamma, up to the width of a step; gamma = 0 is the plain mean."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for length, tolerance in ((12**-0.5, 1e-8), (0.1, 0.01)):
        gamma, average = gamma_of(length), 1e9
        for i, value in enumerate(values.tolist()):
            average += power_share(gamma, 8 * (i + 1), 8) * (value - average)
        profile = torch.arange(1, 401, dtype=torch.float64) ** gamma
        assert average == pytest.approx(float((profile * values).sum() / profile.sum()), abs=tolerance)
