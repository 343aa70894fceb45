"""What DAFormer, HRDA, MIC and SegFormer take for one image: CPU seconds and memory, from pixels to certainties.

    OMP_NUM_THREADS=1 python benchmarks/leaders.py [NAME ...] [--size 2048x1024] [--encoder b5]

Random weights, which take as long as trained ones; each network in a process of its own, whose peak is its memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import numpy as np
import torch

from endauda_cli.models import build_teacher
from endauda_cli.segmenter import Segmenter, certainty_maps, run_passes
from endauda_cli.teachers import TEACHERS

NAMES = ("daformer", "segformer", "hrda", "mic")


def measure(name: str, encoder: str, width: int, height: int) -> str:
    """A line on one network."""
    torch.manual_seed(0)
    spec = TEACHERS[name]
    network = build_teacher(spec.network, 19, size=encoder).eval()
    network = network.to(memory_format=torch.channels_last)
    weights = peak()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    segmenter = Segmenter(network, spec.preprocessing, spec.procedure)
    begun = time.process_time()
    with torch.inference_mode():
        inputs = torch.from_numpy(np.array(spec.preprocessing.resize(pixels)))[None]
        passes = [output[0] for output in run_passes(segmenter, [inputs])]
        labels, _ = certainty_maps(segmenter, passes, (height, width))
    assert labels.shape == (height, width)
    spent = time.process_time() - begun
    return (
        f"{name:10} {spent:7.1f} CPU s   peak {peak():5.2f} GB, {weights:4.2f} GB of it with nothing run yet"
    )


def peak() -> float:
    """Most memory that this process ever held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--size", default="2048x1024")
    parser.add_argument("--encoder", default="b5")
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    for name in given.names or NAMES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (name, given.encoder, width, height)), flush=True)


if __name__ == "__main__":
    main()
