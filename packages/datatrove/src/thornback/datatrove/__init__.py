"""datatrove's `RayPipelineExecutor`, drop-in."""

from __future__ import annotations

__all__: list[str] = []
