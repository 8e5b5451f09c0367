# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m medloc_jax VERB`, the same as `medloc VERB`."""

import sys

from medloc_jax.cli import main

sys.exit(main.main())
