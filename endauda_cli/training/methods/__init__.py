"""What there is to learn from, and how: one short file per method, one row in ``METHODS``.

A method says which streams of images it draws from and how their label files are read, what a batch's loss is, what
it keeps beside the student from step to step (an averaged teacher, say), and which options have another default with
it. The loop around it is the same for all.
"""

from __future__ import annotations

from endauda_cli.training.methods import cbst, crst, dacs, distill, mrnet, source
from endauda_cli.training.methods.method import MAIN, TARGET, Batch, Forward, Material, Method
from endauda_cli.types import Method as Name

__all__ = ["MAIN", "METHODS", "TARGET", "Batch", "Forward", "Material", "Method"]

METHODS: dict[str, type[Method]] = {
    Name.DISTILL: distill.Distill,
    Name.SOURCE: source.Source,
    Name.DACS: dacs.Dacs,
    Name.CBST: cbst.Cbst,
    Name.CRST: crst.Crst,
    Name.MRNET: mrnet.MrNet,
    Name.RECTIFY: mrnet.Rectify,
}
