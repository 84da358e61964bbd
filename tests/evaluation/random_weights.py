"""Weight files of the real formats with random weights, and the rows that describe them."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from cleanfid import inception_pytorch as fid
from torch import Tensor, nn
from torchvision.models import inception_v3
from torchvision.models.inception import BasicConv2d

from evaluation.networks.weights import WeightFile
from mdm.files import sha256


def row_of(path: Path, name: str, model: str = "", quick_gelu: bool = False) -> WeightFile:
    """A row of a test's own file, with its sha256 and an address that nobody answers at."""
    url = "http://127.0.0.1:9/" + path.name
    return WeightFile(name, path.name, url, "made by a test", "none", sha256(path), "this test", model, quick_gelu)


def without_hash(row: WeightFile) -> WeightFile:
    return replace(row, sha256=None)


class ConvNorm(nn.Module):
    """As the layers in NVIDIA's file: the normalisation has a bias and no weight."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, bias=False)
        self.beta = nn.Parameter(torch.rand(out) - 0.5)
        self.register_buffer("mean", torch.rand(out) - 0.5)
        self.register_buffer("var", torch.rand(out) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.mean, self.var, None, self.beta, False, 0.0, 0.001)
        return F.relu(x)


class Inception(nn.Module):
    """What NVIDIA's file offers: ``layers``, ``output``, and a forward that resizes as TensorFlow 1 did."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.output = nn.Linear(2048, 1008)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        height, width = img.shape[2], img.shape[3]
        theta = torch.eye(2, 3, device=img.device)
        theta[0, 2] += 1 / width - 1 / 299  # so that output pixel i lies at input pixel i · width / 299
        theta[1, 2] += 1 / height - 1 / 299
        theta = theta.unsqueeze(0).repeat([img.shape[0], 1, 1])
        grid = F.affine_grid(theta, [img.shape[0], 3, 299, 299], align_corners=False)
        x = F.grid_sample(img.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(-1, 2048)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return F.softmax(logits, dim=1)


def small_layers() -> nn.Sequential:
    return nn.Sequential(ConvNorm(3, 8, 5, 5), ConvNorm(8, 16, 3, 3), ConvNorm(16, 2048, 3, 3), nn.AdaptiveAvgPool2d(1))


def whole_layers() -> nn.Module:
    """The real network's layers, by the packages that clean-fid takes them from; 11.4 GFLOP an image."""
    net = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    net.Mixed_5b, net.Mixed_5c, net.Mixed_5d = (fid.FIDInceptionA(*size) for size in ((192, 32), (256, 64), (288, 64)))
    net.Mixed_6b, net.Mixed_6c, net.Mixed_6d, net.Mixed_6e = (fid.FIDInceptionC(768, c) for c in (128, 160, 160, 192))
    net.Mixed_7b, net.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
    for module in net.modules():
        if isinstance(module, BasicConv2d):
            nn.init.kaiming_normal_(module.conv.weight)
            nn.init.normal_(module.bn.running_mean, std=0.1)
            nn.init.uniform_(module.bn.running_var, 0.5, 1.5)
    left_out = ("AuxLogits", "dropout", "fc")
    return nn.Sequential(*(layer for name, layer in net.named_children() if name not in left_out))


def write_inception(path: Path, layers: nn.Module) -> WeightFile:
    torch.jit.script(Inception(layers).eval()).save(str(path))
    return row_of(path, "random_inception")
