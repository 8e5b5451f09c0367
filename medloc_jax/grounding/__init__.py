# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a grounding answer is: boxes and their frames, the parser, the prompts (numpy only)."""
