import sys

from batchkit.cli.main import main

sys.exit(main())
