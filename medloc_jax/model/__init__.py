# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL: sizes, what the host prepares for it, and the network itself."""
