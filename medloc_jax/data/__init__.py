# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Examples from manifests, and batches of them as numpy arrays. Nothing here imports jax."""
