# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From completions to rewards: raw scores on the host, their combination on the device."""
