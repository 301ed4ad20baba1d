"""`python -m thornback.pool.worker --fd N`: a supervisor as a process of its own."""

import sys

from thornback.pool.worker.server import main

if __name__ == "__main__":
    sys.exit(main())
