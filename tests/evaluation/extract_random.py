"""evaluation.extract with networks of random weights, which call themselves random; slow ones, where they are to be."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluation.extract import main
from evaluation.networks.features import Extractor, RandomFeatures


class Slow(RandomFeatures):
    def features(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ.get("SECONDS_PER_BATCH", "0")))
        return super().features(images)


def load(roles: Sequence[str], _weights: Path, _device: torch.device) -> dict[str, Extractor]:
    return {role: Slow(16 + i) for i, role in enumerate(roles)}


if __name__ == "__main__":
    sys.exit(main(load))
