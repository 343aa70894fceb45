"""``doctor``: what it finds in whole, unfinished and broken workspaces, and on broken installations."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from endauda_cli import options
from endauda_cli.archive import CODECS
from endauda_cli.doctor import devices, disk, program, speed
from endauda_cli.doctor.speed import CodecSpeed, Workload
from endauda_cli.progress import silent
from endauda_cli.results import CheckupResult, Finding, FindingGroup
from endauda_cli.terminal.console import Terminal
from tests.support import ROOT
from tests.support.command_lines import (
    CITIES,
    TEACHERS,
    TRAIN,
    VAL,
    Outcome,
    broken_module,
    endauda,
    files_of,
    make_archive,
    make_cityscapes,
    make_workspace,
    shell,
    without_superpowers,
)

SMALL = '[train]\nbackbone = "tiny"\nsize = "64x32"\ncrop = "32x16"\nbatch-size = 2\nsteps = 2\nworkers = 1\n'
Findings = dict[str, list[Any]]


def doctor(*words: str | Path) -> tuple[Outcome, Findings]:
    """The outcome, and the findings by name."""
    outcome = endauda("doctor", "--no-speed", "--json", *words)
    return outcome, findings_of(outcome.result)


def findings_of(result: Any) -> Findings:
    found: Findings = {}
    for group in result["groups"]:
        for finding in group["findings"]:
            found.setdefault(finding["name"], []).append(finding)
    return found


def states(findings: Findings, name: str) -> list[str]:
    return [finding["state"] for finding in findings[name]]


# ---------------------------------------------------------------------------- workspaces


def test_an_empty_folder_is_told_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENDAUDA_WORKSPACE", raising=False)
    outcome, found = doctor()
    assert (outcome.code, outcome.result["usable"], outcome.result["next"]) == (0, True, "endauda demo")
    assert str(CITIES / "leftImg8bit/train/*/*_leftImg8bit.png") in found["target images"][0]["text"]
    assert states(found, "teachers") == states(found, "labels") == states(found, "student") == ["missing"]
    assert list(tmp_path.iterdir()) == []


def test_its_lines_lead_from_archives_to_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it is printed, from elsewhere, until nothing is missing. And looking changes nothing."""
    root = make_workspace(tmp_path / "a workspace")
    (root / "endauda.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    lines = []
    while (line := doctor("--workspace", root)[0].result["next"]) is not None:
        lines.append(shlex.split(line))
        assert len(lines) < 4 and endauda(*lines[-1][1:], "--quiet").code == 0
    where = ["--workspace", str(root)]
    assert lines == [
        ["endauda", "fuse", "--teachers", *sorted(TEACHERS), *where],
        ["endauda", "train", *where],
        ["endauda", "test", *where],
    ]
    before = files_of(root)
    outcome, found = doctor("--workspace", root)
    assert files_of(root) == before
    assert (
        outcome.code == 0 and "nothing is missing" in endauda("doctor", "--no-speed", "--workspace", root).out
    )
    assert found["target images"][0]["facts"] == {
        "train": {"images": len(TRAIN), "labelled": 0}, "val": {"images": len(VAL), "labelled": len(VAL)},
    }  # fmt: skip
    assert [f["facts"]["name"] for f in found["teacher"]] == sorted(TEACHERS)
    assert all(f["facts"]["train"] == {"done": len(TRAIN), "images": len(TRAIN)} for f in found["teacher"])
    assert found["labels"][0]["text"].startswith(f"consensus: {len(TRAIN)} train images, coverage ")
    assert found["run"][0]["facts"] == {"name": "deeplabv3plus-tiny-consensus", "step": 2, "steps": 2}
    assert found["score"][0]["facts"]["images"] == len(VAL)
    assert found["archives"][0]["facts"]["teachers"] == disk.USUAL_TEACHERS


def test_source_and_target_are_those_that_the_commands_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From endauda.toml or the environment; lines repeat only what a command would not know."""
    root = make_cityscapes(tmp_path)
    (root / "mine.toml").write_text(
        'name = "mine"\nclasses = ["road", "car"]\n[train]\nimages = "images/*.png"\n'
    )
    tables = [
        f'[{command}]\ntarget = "mine.toml"\n' for command in ("export-teacher", "fuse", "train", "test")
    ]
    (root / "endauda.toml").write_text("".join(tables))
    monkeypatch.chdir(root)
    _, found = doctor()
    assert found["domains"][0]["text"] == "mine -> mine, 2 classes"
    assert found["teachers"][0]["mend"] == "endauda export-teacher NAME --weights FILE"
    _, found = doctor("--target", "cityscapes", "--source", "synthia")
    assert found["domains"][0]["text"] == "synthia -> cityscapes, 16 classes"
    (root / "endauda.toml").unlink()
    monkeypatch.setenv("ENDAUDA_FUSE_TARGET", "mine.toml")
    _, found = doctor()
    assert found["domains"][0]["facts"]["target"] == "mine" and states(found, "--target") == ["note"]
    assert found["teachers"][0]["mend"].endswith("--weights FILE --target mine.toml")


def test_unfinished_and_damaged_archives(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    make_archive(root, "dacs", TRAIN)
    make_archive(root, "crst", TRAIN[:3])
    (make_archive(root, "cbst", TRAIN) / "shard-0-of-1-00000.h5").unlink()
    make_archive(root, "mrnet", TRAIN)
    (root / "certainty/gta5/mrnet/archive.json").write_text("{")
    outcome, found = doctor("--workspace", root)
    by_name = {f["facts"]["name"]: f for f in found["teacher"]}
    assert {name: f["state"] for name, f in by_name.items()} == {
        "dacs": "ok", "crst": "missing", "cbst": "missing", "mrnet": "missing",
    }  # fmt: skip
    assert "3 of 5 train" in by_name["crst"]["text"]
    assert shlex.split(by_name["crst"]["mend"])[:3] == ["endauda", "export-teacher", "crst"]
    assert shlex.split(by_name["cbst"]["mend"])[:4] == ["endauda", "inspect", "cbst", "--verify"]
    assert "archive.json" in by_name["mrnet"]["text"]
    assert shlex.split(found["labels"][0]["mend"])[2:4] == ["--teachers", "dacs"], (
        "only whole ones can be fused"
    )
    assert outcome.code == 0, "missing data is no failure"


def test_archives_of_other_classes(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    shutil.copytree(make_archive(root, "dacs", TRAIN), root / "certainty/synthia/dacs")
    _, found = doctor("--workspace", root, "--source", "synthia")
    assert "19 classes of another table than --source synthia has (16)" in found["teacher"][0]["text"]


def test_a_label_set_that_was_not_finished(tmp_path: Path) -> None:
    root = make_workspace(tmp_path)
    assert endauda("fuse", "--workspace", root, "--rule", "majority", "--quiet").code == 0
    (root / CITIES / "gtFine/majority/fusion.json").unlink()
    _, found = doctor("--workspace", root)
    note, missing = found["labels"]
    assert note["state"] == "note" and note["facts"] == {"name": "majority", "images": len(TRAIN)}
    assert endauda(*shlex.split(note["mend"])[1:], "--quiet").code == 0
    assert missing["state"] == "missing"
    assert states(doctor("--workspace", root)[1], "labels") == ["ok"]


def test_weights_that_are_there_are_exported(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    (root / "weights/teachers/crst").mkdir(parents=True)
    (root / "weights/teachers/crst/crst.pth").touch()
    _, found = doctor("--workspace", root)
    assert found["weights"][0]["facts"]["there"] == ["crst"]
    weights = ["--weights", str(root / "weights/teachers/crst/crst.pth"), "--workspace", str(root)]
    assert shlex.split(found["teachers"][0]["mend"]) == ["endauda", "export-teacher", "crst", *weights]


@pytest.mark.parametrize(
    "text", ["[fuse\n", "[fuse]\nteacher = 'dacs'\n", "[fusion]\n", "threshold = 3\n", b"\xff"]
)
def test_a_broken_configuration_is_a_finding(tmp_path: Path, text: str | bytes) -> None:
    root = make_workspace(tmp_path)
    (root / "endauda.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    outcome, found = doctor("--workspace", root)
    assert (outcome.code, outcome.result["usable"]) == (1, False)
    assert states(found, "endauda.toml") == ["broken"] and states(found, "teacher") == ["ok"] * 3
    assert outcome.result["next"] == f"${{EDITOR:-vi}} {root / 'endauda.toml'}"
    assert endauda("fuse", "--workspace", root).code == 1, "other commands still refuse it"


def test_a_workspace_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, found = doctor("--workspace", tmp_path / "no where")
    assert (outcome.code, outcome.result["next"]) == (1, f"mkdir -p '{tmp_path / 'no where'}'")
    assert states(found, "packages") == ["ok"]
    monkeypatch.setenv("ENDAUDA_WORKSPACE", str(tmp_path / "gone"))
    outcome, found = doctor()
    assert outcome.code == 1 and states(found, "workspace") == ["broken"]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("cityscape", "did you mean cityscapes?"),
        ("absent.toml", "absent.toml: no such file"),
        ("broken.toml", "not valid TOML"),
        ("single.toml", "1 classes, but 2 to 255 are possible"),
    ],
)
def test_targets_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("[")
    Path("single.toml").write_text('classes = ["road"]\n[train]\nimages = "*.png"\n')
    outcome, found = doctor("--target", target)
    assert outcome.code == 0 and states(found, "domains") == ["missing"]
    assert told in found["domains"][0]["text"]
    assert (
        "what has to be mended is told above"
        in endauda("doctor", "--no-speed", "--target", "single.toml").out
    )


def test_images_that_share_a_name(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    twin = root / CITIES / "leftImg8bit/train/zurich" / f"{TRAIN[0]}.png"
    twin.parent.mkdir()
    twin.touch()
    _, found = doctor("--workspace", root)
    assert f"two images are called {TRAIN[0]}" in found["target images"][0]["text"]


@pytest.mark.slow
def test_folders_that_may_not_be_read_or_written(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    line = [*without_superpowers(), sys.executable, "-m", "endauda_cli", "doctor", "--no-speed", "--quiet"]
    line += ["--workspace", str(root)]
    (root / "certainty/gta5").chmod(0)
    root.chmod(0o500)
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    finally:
        root.chmod(0o700)
        (root / "certainty/gta5").chmod(0o700)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"chmod u+rwx {root}" in done.stdout and f"chmod -R u+rX {root}/certainty/gta5" in done.stdout


# ---------------------------------------------------------------------------- programs


def installed(folder: Path, name: str, version: str, *requires: str) -> None:
    """What pip leaves of a package, as far as other programs read it."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (about / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n")


def elsewhere(tmp_path: Path, fakes: Path) -> tuple[int, Findings]:
    """The doctor in a process that finds the packages of a folder before the real ones."""
    path = os.pathsep.join([str(fakes), str(ROOT)])
    done = shell("doctor", "--no-speed", "--json", cwd=tmp_path, PYTHONPATH=path)
    assert "Traceback" not in done.stderr
    return done.returncode, findings_of(json.loads(done.stdout)["result"])


@pytest.mark.slow
def test_without_h5py_no_command_works(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    broken_module(tmp_path / "fakes", "h5py", 'ImportError("libhdf5.so.310: cannot open shared object file")')
    code, found = elsewhere(tmp_path, tmp_path / "fakes")
    assert code == 1 and states(found, "h5py") == states(found, "hdf5plugin") == ["broken"]
    assert "libhdf5.so.310" in found["h5py"][0]["text"]
    assert found["h5py"][0]["mend"].startswith("pip install --force-reinstall 'h5py>=")
    assert found["hdf5plugin"][0]["text"].endswith("needs h5py") and found["hdf5plugin"][0]["mend"] is None
    assert "cannot be read" in found["teachers"][0]["text"]


@pytest.mark.slow
def test_torchvision_of_another_torch(tmp_path: Path) -> None:
    """One that cannot be imported, and one that says that it was built for another."""
    fakes = tmp_path / "fakes"
    broken_module(fakes, "torchvision", 'RuntimeError("operator torchvision::nms does not exist")')
    installed(fakes, "torchvision", "9.1", "torch==9.4.0")
    code, found = elsewhere(tmp_path, fakes)
    (torchvision,) = found["torchvision"]
    assert code == 1 and torchvision["state"] == "broken"
    assert "operator torchvision::nms does not exist" in torchvision["text"]
    assert "torchvision 9.1 was built for torch 9.4.0, but torch " in torchvision["text"]
    assert torchvision["mend"].startswith("pip install --force-reinstall torch torchvision")
    shutil.rmtree(fakes / "torchvision")
    code, found = elsewhere(tmp_path, fakes)
    assert code == 0 and [f["state"] for f in found["torchvision"]] == ["note"]


@pytest.mark.slow
def test_old_and_missing_packages_of_some_commands(tmp_path: Path) -> None:
    fakes = tmp_path / "fakes"
    installed(fakes, "requests", "1.2")
    broken_module(fakes, "tensorboard", 'ImportError("no protobuf")')
    broken_module(fakes, "onnxruntime", 'ImportError("DLL load failed")')
    code, found = elsewhere(tmp_path, fakes)
    assert code == 0
    (requests,) = found["requests"]
    assert requests["state"] == "note" and requests["text"].startswith("1.2, but endauda needs >=")
    assert requests["mend"].startswith("pip install --upgrade 'requests>=")
    assert states(found, "tensorboard") == ["missing"] and states(found, "onnxruntime") == ["note"]


@pytest.mark.slow
def test_variables_that_numba_does_not_load_with(tmp_path: Path) -> None:
    """They are meant for other programs."""
    done = shell("doctor", "--json", cwd=tmp_path, NUMBA_DISABLE_JIT="1", NUMBA_NUM_THREADS="0")
    found = findings_of(json.loads(done.stdout)["result"])
    assert done.returncode == 0
    assert states(found, "numba") == states(found, "softmax") == ["ok"]


def test_requirements_as_pip_writes_them() -> None:
    parsed = program._parse('segmentation-models-pytorch>=0.4,<2; extra == "smp"')
    assert parsed is not None and (parsed.module, parsed.extra) == ("segmentation_models_pytorch", "smp")
    assert parsed.install == "pip install 'endauda[smp]'"
    plain = program._parse("Pillow (>=10.3)")
    assert plain is not None and (plain.name, plain.module, plain.versions) == ("pillow", "PIL", ">=10.3")
    assert plain.install == "pip install 'pillow>=10.3'"
    assert program._parse('torch>=2; python_version < "3"') is None


def test_the_engine_imports_nothing_that_may_be_broken() -> None:
    heavy = "{'torch', 'torchvision', 'numpy', 'h5py', 'hdf5plugin', 'imagecodecs', 'PIL', 'numba', 'jinja2'}"
    lines = f"import sys, endauda_cli.doctor, endauda_cli.commands.doctor; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


# ---------------------------------------------------------------------------- machines


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    outcome, found = doctor("--workspace", tmp_path, "--device", "cuda:99")
    assert outcome.code == 1 and states(found, "--device cuda:99") == ["broken"]
    assert outcome.result["next"] == "endauda doctor --device auto"
    _, found = doctor("--workspace", tmp_path, "--device", "cpu")
    assert found["--device cpu"][0]["facts"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("built", "too_old", "hidden", "told", "mend"),
    [
        (None, False, None, "a build for the CPU only", "pip install --force-reinstall torch torchvision"),
        ("13.0", False, "", "which hides every card", "unset CUDA_VISIBLE_DEVICES"),
        ("13.0", True, None, "driver 535.54.03 is too old for torch's CUDA 13.0", None),
    ],
)
def test_why_there_is_no_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: str | None, too_old: bool, hidden: str | None, told: str,
    mend: str | None,
) -> None:  # fmt: skip
    """On machines that these are not: a driver that says its version, and builds of torch."""
    if sys.platform != "linux" or Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine says what driver it has")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 535.54.03\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)

    def init() -> None:
        if too_old:
            raise RuntimeError(
                "The NVIDIA driver on your system is too old (found version 12020). Please update"
            )

    torch = SimpleNamespace(
        __version__="2.14.1", version=SimpleNamespace(cuda=built, hip=None), cuda=SimpleNamespace(init=init)
    )
    finding = devices._no_cuda(torch, [])
    assert finding.state == "note" and told in finding.text and finding.mend == mend


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_a_container(tmp_path: Path) -> None:
    put(
        tmp_path / "proc/meminfo", "MemTotal:       67108864 kB\nMemFree: 1 kB\nMemAvailable:   33554432 kB\n"
    )
    assert devices.memory(tmp_path) == (64 << 30, 32 << 30)
    put(tmp_path / "proc/self/cgroup", "0::/system.slice/job\n")
    put(tmp_path / "sys/fs/cgroup/system.slice/job/cpu.max", "max 100000\n")
    assert devices.cpu_share(tmp_path) is None
    put(tmp_path / "sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n")  # that around it counts, too
    put(tmp_path / "sys/fs/cgroup/memory.max", f"{8 << 30}\n")
    put(tmp_path / "sys/fs/cgroup/memory.current", f"{6 << 30}\n")
    assert devices.cpu_share(tmp_path) == 1.5 and devices.memory(tmp_path) == (8 << 30, 2 << 30)


def test_limits_of_an_older_container(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/cgroup", "9:memory:/outside\n4:cpu,cpuacct:/outside\n")
    put(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    put(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    put(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{1 << 30}\n")
    assert devices.cpu_share(tmp_path) == 2 and devices.memory(tmp_path)[0] == 1 << 30


def test_a_network_share_and_too_little_room(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:9 / {tmp_path} rw shared:1 - nfs4 server:/x rw\n"
    )
    assert disk.file_system(Path("/"), mounts) == "ext4"
    work = Workload(10**9, 1024, 2048, 19)
    _, network, room = disk.check_disk(tmp_path / "inside", work, 25.0, 1, mounts)
    assert network.state == "note" and "a network share (nfs4)" in network.text
    assert room.state == "note" and room.facts["bytes_per_teacher"] == 10**9 * 1024 * 2048 * 20 // 25
    assert disk.check_disk(tmp_path, Workload(1, 32, 64, 19), 25.0, 1)[-1].state == "ok"


@pytest.mark.slow
def test_codecs_are_measured_and_give_back_what_they_took() -> None:
    speeds, findings = speed.measure_codecs(silent)
    assert set(speeds) == set(map(str, CODECS)) and all(f.state == "ok" for f in findings)
    assert all(s.write > 0 and s.read > 0 and s.smaller > 2 for s in speeds.values())
    assert speeds["softmax"].smaller == max(s.smaller for s in speeds.values())


def test_the_generated_map_is_a_softmax() -> None:
    planes = speed.softmax_map(5, 64, 96, seed=3)
    total = planes.sum(0, dtype=np.int64)
    assert planes.shape == (5, 64, 96) and planes.dtype == np.uint8
    assert total.max() <= 100 and total.min() > 95, "percent, truncated"


def test_time_is_reckoned_from_speeds() -> None:
    speeds = {"softmax": CodecSpeed(write=1e8, read=2e8, smaller=25)}
    (finding,) = speed.time_of(Workload(2975, 1024, 2048, 19), speeds)
    cores = devices.usable_cores()
    assert 0 < cores <= options.cores()
    assert finding.facts["write_seconds"] == pytest.approx(2975 * 1024 * 2048 * 20 / 1e8 / cores)
    assert "at least" in finding.text
    assert [speed.duration(s) for s in (0.2, 40, 600, 12_000)] == ["1 s", "40 s", "10 min", "3 h 20 min"]


# ---------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal_but_for_those_to_copy(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    mend = "endauda fuse --teachers " + " ".join(f"teacher-{i}" for i in range(20))
    findings = (
        Finding("teacher", "ok", "word " * 60),
        Finding("[red] :car:", "missing", "a" * 300, mend),
        Finding("a name that is longer than the column of names", "broken", "x"),
    )
    with Terminal("doctor") as terminal:
        terminal.show(CheckupResult(False, (FindingGroup("Steps", findings),), mend))
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert [line for line in lines if len(line) > columns] == [f"         -> {mend}", f"  {mend}"]
    assert "".join(lines).count("a" * 20) >= 10 and any("[red] :car:" in line for line in lines)


def test_quiet_leaves_the_report(tmp_path: Path) -> None:
    outcome = endauda("doctor", "--workspace", tmp_path, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Codecs" in outcome.out and "softmax" in outcome.out and outcome.out.endswith("endauda demo\n")
