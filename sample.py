"""Sample: `python sample.py MODEL PROMPT [PROMPT ...]`. The sampler is in dreambooth/generation/sampler.py."""

import sys

from dreambooth.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]], prog="sample.py"))
