# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What fits where: a job's real programs compiled ahead of time, and what the compiler says."""
