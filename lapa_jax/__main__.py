"""`python -m lapa_jax VERB ...` is `lapa VERB ...`."""

import sys

from lapa_jax.cli import main

sys.exit(main())
