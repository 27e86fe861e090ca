"""``python -m voco``, for launchers such as ``torchrun``."""

import sys

from voco.cli import main

sys.exit(main())
