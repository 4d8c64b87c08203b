"""`python -m lorafit`."""

import sys

from lorafit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
