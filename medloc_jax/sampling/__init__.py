# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sampling: prefill a prompt once, draw a group of completions on it."""
