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

Importing it costs nothing: completion reads the manifest on TAB. The HTTP library and torch are loaded where
something is fetched or opened.
"""

from endauda_cli.weights.fetching import FetchOptions, fetch_weights, list_weights
from endauda_cli.weights.manifest import Artefact, Manifest, Network, installed, read_manifest
from endauda_cli.weights.transport import Patience

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
