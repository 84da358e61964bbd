"""NestedUNet: growth keeps what was learned, mixed batches, conditioning."""

import pytest
import torch

from mdm.config import MODELS, Model
from mdm.network.nested import NestedUNet
from mdm.training.progressive import grow
from small import TEXT_DIM, small_model


def trained(model: Model) -> NestedUNet:
    """A network whose zero-initialised layers have learned something."""
    torch.manual_seed(1)
    network = NestedUNet(model).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(model: Model, batch: int = 3) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    zs = [torch.randn(batch, 3, px, px) for px in model.resolutions]
    mask = torch.ones(batch, 5)
    mask[0, 3:] = 0
    return zs, torch.randint(0, 1000, (batch,)), torch.randn(batch, 5, TEXT_DIM), mask


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (1, 3)])
@torch.no_grad()
def test_growth_leaves_lower_outputs_bit_identical_and_new_ones_zero(before: int, after: int) -> None:
    inner = trained(small_model(before))
    grown = NestedUNet(small_model(after)).eval()
    grown.load_state_dict(grow(inner.config, inner.state_dict(), grown.config, seed=0))
    zs, t, text, mask = inputs(grown.config)
    old, new = inner(zs[:before], t, text=text, text_mask=mask), grown(zs, t, text=text, text_mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(old, new, strict=False))
    assert all(v.abs().max() == 0 for v in new[before:])
    assert all(v.abs().max() > 0 for v in old)


def test_growth_into_another_model_is_refused() -> None:
    inner = trained(small_model(2))
    with pytest.raises(ValueError, match="inner levels must be equal"):
        grow(inner.config, inner.state_dict(), small_model(1), seed=0)
    with pytest.raises(ValueError, match="inner levels must be equal"):
        grow(inner.config, inner.state_dict(), MODELS["tiny-16-32-64"], seed=0)


@torch.no_grad()
def test_a_mixed_batch_equals_its_parts() -> None:
    """Samples that carry only low levels see zero features from above; the others see what they would alone."""
    network = trained(small_model(3))
    zs, t, text, mask = inputs(network.config)
    whole = network(zs, t, text=text, text_mask=mask)
    mixed = network([zs[0], zs[1][:2], zs[2][:1]], t, text=text, text_mask=mask)
    assert [len(v) for v in mixed] == [3, 2, 1]
    for full, part in zip(whole, mixed, strict=True):
        assert torch.allclose(full[:1], part[:1], atol=1e-5)
    assert not torch.allclose(whole[0][2], mixed[0][2], atol=1e-3)


@torch.no_grad()
def test_padding_is_not_seen() -> None:
    network = trained(small_model(2))
    zs, t, text, mask = inputs(network.config)
    changed = text.clone()
    changed[0, 3:] = 99.0
    for a, b in zip(
        network(zs, t, text=text, text_mask=mask), network(zs, t, text=changed, text_mask=mask), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


@torch.no_grad()
def test_leaving_out_upper_decoders_changes_nothing_below() -> None:
    network = trained(small_model(3))
    zs, t, text, mask = inputs(network.config)
    whole = network(zs, t, text=text, text_mask=mask)
    for count in (1, 2, 3):
        part = network(zs, t, text=text, text_mask=mask, num_outputs=count)
        assert len(part) == count
        assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=False))
