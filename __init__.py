"""rankwise: which fine-tuning configuration to run, from evidence on your own hardware.

    from rankwise import recommend
    best = recommend(model="path/to/model", dataset="reviews.csv")
    print(best.explain())
    config = best.to_peft_config()

Importing this package imports neither torch nor a web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Client",
    "Recommendation",
    "__version__",
    "apply",
    "estimate",
    "estimate_module",
    "optimizer_for",
    "recommend",
]

if TYPE_CHECKING:
    from .api.applying import apply, optimizer_for
    from .api.client import Client
    from .api.python import Recommendation, estimate, estimate_module, recommend


def __getattr__(name: str) -> Any:
    """Load the public names on first use (PEP 562), so that ``import rankwise`` stays light."""
    if name in ("Recommendation", "estimate", "estimate_module", "recommend"):
        from .api import python

        return getattr(python, name)
    if name in ("apply", "optimizer_for"):
        from .api import applying

        return getattr(applying, name)
    if name == "Client":
        from .api.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
