# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Puts this folder on the path: its tests, and that of the verb, share `random_folders`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
