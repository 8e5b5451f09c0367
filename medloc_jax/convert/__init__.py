# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face checkpoints in and out: the name table and what walks it."""
