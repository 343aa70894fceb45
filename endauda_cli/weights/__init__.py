"""Store: weights and pseudo labels that others published, from a link that may be dead to a file that is proven.

=============== =====================================================================================
``manifest``    what there is, as data: ``data/weights.json`` or a laboratory's own list
``lockfile``    what was seen when something was first fetched; later downloads must match it
``transport``   one file over HTTP: resumed, retried, never a web page
``drive``       Google Drive's confirmation page and folder listing
``unpacking``   zip and tar archives, without paths that lead out, links or bombs
``matching``    a checkpoint, opened without running code and laid against its network
``fetching``    all of that in order, for the artefacts that were named
=============== =====================================================================================

Importing it costs nothing, for completion reads the manifest on TAB: all else is imported when it is asked for, and
the HTTP library and torch where something is fetched or opened.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from endauda_cli.weights.manifest import Artefact, Manifest, Network, installed, read_manifest

if TYPE_CHECKING:
    from endauda_cli.weights.fetching import FetchOptions, fetch_weights
    from endauda_cli.weights.listing import list_weights
    from endauda_cli.weights.transport import Patience

_LATER = {
    "FetchOptions": "fetching",
    "fetch_weights": "fetching",
    "list_weights": "listing",
    "Patience": "transport",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    # what there is
    "Artefact",
    "Manifest",
    "Network",
    "read_manifest",
    "list_weights",
    "installed",
    # getting it
    "FetchOptions",
    "Patience",
    "fetch_weights",
]
