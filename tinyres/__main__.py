"""``python -m tinyres``: the same as the command ``tinyres``."""

import sys

from tinyres.cli import main

sys.exit(main())
