"""`python -m condinst_infer` is `condinst`."""

import sys

from condinst_infer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
