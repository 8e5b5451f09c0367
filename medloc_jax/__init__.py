# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MedLoc-R1 in JAX: medical visual grounding by GRPO on Qwen2.5-VL, with a curriculum."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medloc_jax.evaluation.grounder import Grounder as Grounder

__all__ = ["Grounder"]


def __getattr__(name: str) -> Any:
    """`medloc_jax.Grounder`, imported when it is asked for: it brings JAX along."""
    if name == "Grounder":
        from medloc_jax.evaluation import grounder

        return grounder.Grounder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
