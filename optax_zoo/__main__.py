"""`python -m optax_zoo` is `optax-zoo`."""

import sys

from optax_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
