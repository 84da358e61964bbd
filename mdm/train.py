"""``torchrun --nproc-per-node 2 -m mdm.train RUN_FOLDER``: the trainer, which lives in ``training/train.py``."""

import sys

from mdm.training.train import main

if __name__ == "__main__":
    sys.exit(main())
