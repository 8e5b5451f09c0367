# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Training loops (SFT and GRPO), their state and the optimizer."""
