"""Where samples live: DuckDB embedded (`resin.store.duck`) or a Prometheus API (`resin.store.prometheus`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Pivot, SeriesStore, StoreError, merge_pivots

if TYPE_CHECKING:
    from .duck import Store

__all__ = ["Pivot", "SeriesStore", "Store", "StoreError", "merge_pivots"]


def __getattr__(name: str) -> Any:
    if name == "Store":  # imported when first asked for: DuckDB costs 60 MB that an agent must not pay
        from .duck import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
