"""`python -m optax_zoo.race` is `optax-zoo race`."""

import sys

from optax_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["race", *sys.argv[1:]]))
