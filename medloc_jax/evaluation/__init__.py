# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a trained model is worth: decode a split, measure it, and show it."""
