# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO arithmetic: advantages, KL estimate, loss. Arrays in, arrays out; imports none of ours."""
