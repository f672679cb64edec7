"""The child of `EmbeddedSimulator`; people start `batchkit simulate`."""

import sys

from batchkit.simulator.process import main

sys.exit(main())
