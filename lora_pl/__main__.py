"""`python -m lora_pl`."""

import sys

from lora_pl.cli.main import main

sys.exit(main())
