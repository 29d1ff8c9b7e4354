"""`python -m dreambooth COMMAND`."""

import sys

from dreambooth.cli import main

sys.exit(main(sys.argv[1:]))
