"""Exponential moving average of the weights (App. B), all tensors in one fused operation."""

import torch
from torch import Tensor, nn


class EMA:
    """Keeps float32 averages beside a model: average <- decay * average + (1 - decay) * weight after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        current = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite a model's parameters with the averages."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name])
