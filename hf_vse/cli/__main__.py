"""`python -m hf_vse.cli`, the form that `accelerate launch -m hf_vse.cli index ...` takes for several processes."""

import sys

from hf_vse.cli.main import main

sys.exit(main())
