"""Train: `python train.py CONFIG.yaml [section.key=value ...]`.

The run is in `dreambooth/engine.py`, the training step in `dreambooth/training/module.py`.
"""

import sys

from dreambooth.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], prog="train.py"))
