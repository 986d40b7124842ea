"""`python -m plant_dist`: the same program as the console script `plant-dist`."""

import sys

from plant_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
