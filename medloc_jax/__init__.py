# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MedLoc-R1 in JAX: medical visual grounding by GRPO on Qwen2.5-VL, with a curriculum."""
