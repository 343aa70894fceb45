"""Store: students, the networks that ``train`` can train, and how each is built again from what a checkpoint says.

``network`` is what is known of one without its weights, as values; ``families`` builds it: a DeepLab of ours, a network
of transformers or segmentation-models-pytorch, a published teacher's, or a package's own.
"""

from __future__ import annotations

from endauda_cli.students.network import Network, Own, build, deeplab, from_record, mirrored, to_record

__all__ = ["Network", "Own", "build", "deeplab", "from_record", "mirrored", "to_record"]
