"""Several processes see one loss, stop together, and save what one would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from endauda_cli import checkpoint
from endauda_cli.models import build_student
from endauda_cli.models.layers import UncountedBatchNorm2d, UncountedSyncBatchNorm, synchronised
from tests.support import ROOT
from tests.support.command_lines import make_cityscapes, make_workspace, succeed
from tests.training.test_adaptation_commands import make_source

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SMALL = ("--backbone", "tiny", "--size", "64x32", "--crop", "64x32", "--batch-size", "4", "--device", "cpu")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ranks(number: int, *words: str, cwd: Path = ROOT) -> list[subprocess.Popen[str]]:
    """As a cluster starts them: each process by itself."""
    meeting = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [
        subprocess.Popen(
            [sys.executable, *words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | meeting | {"RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )
        for rank in range(number)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    told = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, told, strict=True)]


def left_by(number: int, folder: Path, module: str, *words: str) -> Any:
    """What a module of ``tests.support`` writes when so many ranks run it."""
    out = folder / f"{number}.pt"
    for code, _, err in ended(ranks(number, "-m", f"tests.support.{module}", str(out), *words)):
        assert code == 0, err
    return torch.load(out, weights_only=True)


def test_two_and_four_ranks_are_one(tmp_path: Path) -> None:
    """Loss, mining, class weights and weights over 20 steps, with unlabelled shares from 0.1 to all of an image."""
    found = {number: left_by(number, tmp_path, "rank_steps") for number in (1, 2, 4)}
    alone = found[1]
    assert 0 < float(alone["told"][0, 2]) < float(alone["told"][0, 3])
    for number in (2, 4):
        torch.testing.assert_close(found[number]["told"][:, :2], alone["told"][:, :2], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[number]["told"][:, 2:], alone["told"][:, 2:], rtol=0, atol=2)
        for key, value in alone["weights"].items():
            torch.testing.assert_close(found[number]["weights"][key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["soft", "weighted"])
def test_two_ranks_are_one_with_certainties(tmp_path: Path, loss: str) -> None:
    found = [left_by(number, tmp_path, "rank_steps", loss) for number in (1, 2)]
    torch.testing.assert_close(found[1]["told"][:, :2], found[0]["told"][:, :2], rtol=1e-5, atol=1e-6)
    for key, value in found[0]["weights"].items():
        torch.testing.assert_close(found[1]["weights"][key], value, rtol=1e-5, atol=1e-5)


def test_two_ranks_are_one_with_mixed_images(tmp_path: Path) -> None:
    found = [left_by(number, tmp_path, "rank_steps", "hard", "dacs") for number in (1, 2)]
    torch.testing.assert_close(found[1]["told"][:, 0], found[0]["told"][:, 0], rtol=1e-5, atol=1e-6)
    for key, value in found[0]["weights"].items():
        torch.testing.assert_close(found[1]["weights"][key], value, rtol=1e-5, atol=1e-5)


def apart(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Between weights. Masks of attention are thresholds, past which rounding puts a pixel now and then."""
    pairs = [(value.double(), others[key].double()) for key, value in some.items()]
    return float(torch.stack([(one - other).norm() for one, other in pairs]).norm())


@pytest.mark.parametrize("name", ["segformer", "mask2former", "oneformer"])
def test_other_families_in_two_processes_and_in_parts(name: str, tmp_path: Path) -> None:
    """Two ranks learn what one does, and so do parts of a batch; heads that take no part are no hindrance."""
    alone, both = (left_by(number, tmp_path, "family_steps", name) for number in (1, 2))
    assert both["searches"] == (name != "segformer")
    learnt = [apart(alone[kind], alone["before"]) for kind in ("whole", "plain")]
    assert apart(both["whole"], alone["whole"]) < 1e-2 * learnt[0]
    assert apart(alone["parts"], alone["plain"]) < 1e-2 * learnt[1]


@pytest.mark.parametrize("name", ["smp:unet/mobilenet_v2", "eomt", "daformer"])
def test_networks_that_leave_nothing_out_learn_the_same_in_two_processes(name: str, tmp_path: Path) -> None:
    """Ranks need not look for parameters without a gradient then; a network with some would end at the second step."""
    alone, both = (left_by(number, tmp_path, "family_steps", name) for number in (1, 2))
    assert (alone["searches"], both["searches"]) == (None, False)
    assert apart(alone["whole"], alone["before"]) > 0.01
    for key, value in alone["whole"].items():
        torch.testing.assert_close(both["whole"][key], value, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workspace(tmp_path_factory.mktemp("ranks"))
    succeed("fuse", "--rule", "majority", "--workspace", root)
    return root


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_and_saves_all(city: Path, number: int) -> None:
    name = f"stopped-{number}"
    line = ("train", *SMALL, "--steps", "20000", "--name", name, "--json")
    processes = ranks(2, "-m", "endauda_cli", *line, cwd=city)
    metrics = city / f"runs/gta5/{name}/metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < until:
        time.sleep(0.1)
    processes[1].send_signal(number)
    results = ended(processes)
    assert [code for code, _, _ in results] == [128 + number] * 2, results
    step = checkpoint.read_meta(city / f"runs/gta5/{name}/last.pt")["step"]
    assert f"interrupted at step {step} of 20000 (saved)" in results[0][2]
    assert json.loads(results[0][1])["error"]["kind"] == "Interrupted"


def test_another_number_of_processes_is_said(city: Path) -> None:
    line = ["train", *SMALL, "--steps", "3", "--save-every", "1", "--name", "two"]
    for code, _, err in ended(ranks(2, "-m", "endauda_cli", *line, cwd=city)):
        assert code == 0, err
    line[line.index("3")] = "5"
    told = succeed(*line, "--workspace", city).err
    assert "goes on at step 3 of 5" in told and "processes: 1 instead of 2" in told
    assert checkpoint.read_meta(city / "runs/gta5/two/last.pt")["step"] == 5


def test_two_ranks_learn_several_sources_as_one_does(tmp_path: Path) -> None:
    """Each takes its part of every source. A network without dropout, whose norms stay: else ranks differ anyway."""
    root = make_cityscapes(tmp_path)
    for source in ("gta5", "synthia"):
        make_source(root, source)
    line = ("train", "--method", "source", "--domains", "gta5", "synthia", *SMALL, "--arch", "deeplabv2",
            "--freeze-norms", "--crop", "48x24", "--mirror", "--steps", "8", "--lr", "1e-4", "--name")  # fmt: skip
    for code, _, err in ended(ranks(2, "-m", "endauda_cli", *line, "two", cwd=root)):
        assert code == 0, err
    succeed(*line, "one", "--workspace", root)
    succeed(*line, "begun", "--lr", "1e-9", "--workspace", root)
    begun, one, two = (
        checkpoint.load(root / f"runs/gta5/{n}/last.pt")["weights"] for n in ("begun", "one", "two")
    )
    assert apart(one, begun) > 0.1
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5)


def test_synchronised_norms_do_not_count_either() -> None:
    student = build_student("deeplabv3plus", "tiny", 3)
    uncounted = {name for name, m in student.named_modules() if isinstance(m, UncountedBatchNorm2d)}
    before = {key: value.data_ptr() for key, value in student.state_dict().items()}
    converted = synchronised(student)
    found = {name for name, m in converted.named_modules() if isinstance(m, UncountedSyncBatchNorm)}
    assert found == uncounted and found
    assert {key: value.data_ptr() for key, value in converted.state_dict().items()} == before
    converted.train()(torch.randn(2, 3, 32, 64))
    counts = [value for key, value in converted.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts and not any(map(bool, counts))
    plain = synchronised(build_student("deeplabv2", "tiny", 3))
    assert any(type(module) is nn.SyncBatchNorm for module in plain.modules())
