"""Students of other families: trained, stopped and resumed, tested, kept as their library keeps them, and teachers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.archive import CertaintyReader
from endauda_cli.config import TrainConfig
from endauda_cli.deploying import LEAST_EQUAL
from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.models import build_teacher
from endauda_cli.models.grouping import groups_of, run_once, unreached
from endauda_cli.models.mit import MiTSize
from endauda_cli.models.recomputing import recompute_encoder
from endauda_cli.models.universal import UNIVERSAL
from endauda_cli.students import Network, Own, build, deeplab, from_record, to_record
from endauda_cli.students.families import FAMILIES, TASK, auto_model, plain_options
from endauda_cli.teachers.starting import named
from endauda_cli.training.optimizers import make_optimizer
from endauda_cli.training.starting import initialise
from endauda_cli.transforms import Preprocessing
from endauda_cli.types import Optimizer
from tests.support.command_lines import refused, result_of
from tests.support.networks import Net, tokenizer
from tests.support.training_runs import CLASSES, TinySet, make_set

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from endauda_cli.models import Student


MIT: dict[str, Any] = {"size": MiTSize((8, 8, 16, 16), (1, 1, 1, 1)), "width": 16}
SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip


def segformer(library: Any) -> Any:
    return library.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[4, 2, 1, 1], mlp_ratios=[2, 2, 2, 2],
    )  # fmt: skip


def beit(library: Any) -> Any:
    return library.BeitConfig(
        out_indices=[1, 2, 3, 4], pool_scales=[1, 2], use_relative_position_bias=True, **SMALL
    )


def dpt(library: Any) -> Any:
    return library.DPTConfig(
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=16, **SMALL
    )


def upernet(library: Any) -> Any:
    backbone = library.ConvNextConfig(
        depths=[1, 2, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return library.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_channels=8,
        auxiliary_in_channels=16,
    )


def swin(library: Any) -> Any:
    return library.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


MASKS: dict[str, Any] = {
    "num_queries": 7, "hidden_dim": 32, "num_attention_heads": 2, "encoder_layers": 1, "encoder_feedforward_dim": 16,
    "dim_feedforward": 16, "mask_feature_size": 32, "feature_size": 32,
}  # fmt: skip


def mask2former(library: Any) -> Any:
    return library.Mask2FormerConfig(backbone_config=swin(library), decoder_layers=2, **MASKS)


def maskformer(library: Any) -> Any:
    decoder = library.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=7,
    )  # fmt: skip
    return library.MaskFormerConfig(
        backbone_config=swin(library), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32
    )


def oneformer(library: Any) -> Any:
    """As published, with the texts of its training."""
    return library.OneFormerConfig(
        backbone_config=swin(library), is_training=True, text_encoder_width=64, text_encoder_num_layers=1,
        text_encoder_vocab_size=600, query_dec_layers=1, decoder_layers=3, conv_dim=32, mask_dim=32, **MASKS,
    )  # fmt: skip


def eomt(library: Any) -> Any:
    return library.EomtConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=1, image_size=32, patch_size=8,
        num_upscale_blocks=1, num_blocks=1, num_queries=7, num_register_tokens=1,
    )  # fmt: skip


def eomt_dinov3(library: Any) -> Any:
    if not hasattr(library, "EomtDinov3Config"):
        pytest.skip("transformers before 5.0 has no EoMT on DINOv3")
    return library.EomtDinov3Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_upscale_blocks=1, num_blocks=1, num_queries=7, num_register_tokens=1,
    )  # fmt: skip


CONFIGS: dict[str, Callable[[Any], Any]] = {
    made.__name__: made for made in (segformer, beit, upernet, mask2former, maskformer, oneformer, eomt)
}


@dataclass(frozen=True)
class Kind:
    """What ``--network`` is given.

    Attributes:
        named: as typed.
        config: of a network of transformers, whose folder is made.
        weights: the folder has weights too, of a network of other classes.
        teacher: a teacher's, whose file of weights is made.
        optimizer: what suits it.
        size: of images.
        crop: of them.
        windowed: it is run in windows over images, which the description of a deployed file cannot say.
    """

    named: str = ""
    config: Callable[[Any], Any] | None = None
    weights: bool = False
    teacher: dict[str, Any] | None = None
    optimizer: str = "adamw"
    size: str = "64x32"
    crop: str = "32x32"
    windowed: bool = False


KINDS = {
    "segformer": Kind(config=segformer),
    "segformer with weights": Kind(config=segformer, weights=True),
    "beit": Kind(config=beit),
    "dpt": Kind(config=dpt, windowed=True),
    "upernet": Kind(config=upernet),
    "mask2former with weights": Kind(config=mask2former, weights=True, size="128x64", crop="64x64"),
    "maskformer": Kind(config=maskformer, size="128x64", crop="64x64"),
    "oneformer with weights": Kind(config=oneformer, weights=True, size="128x64", crop="64x64"),
    "eomt with weights": Kind(config=eomt, weights=True),
    "eomt_dinov3": Kind(config=eomt_dinov3),
    "smp": Kind("smp:fpn/mobilenet_v2"),
    "smp on timm": Kind("smp:unet/tu-mobilenetv3_small_050"),
    "a transformer teacher": Kind("daformer", teacher=MIT),
    "a teacher in windows": Kind(
        "mic", teacher=MIT | {"crop": 64}, size="128x64", crop="64x64", windowed=True
    ),
}


def words_of(kind: Kind, folder: Path) -> tuple[str, ...]:
    """The words after ``train`` that name it."""
    torch.manual_seed(1)
    if kind.teacher is not None:
        torch.save(
            build_teacher(kind.named, len(CLASSES), **kind.teacher).state_dict(), folder / "teacher.pth"
        )
        return "--network", kind.named, "--init", str(folder / "teacher.pth")
    if kind.named:
        pytest.importorskip(
            "segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed"
        )
        return "--network", kind.named
    library: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    assert kind.config is not None
    config = kind.config(library)
    config.num_labels = 5
    if config.model_type in UNIVERSAL:
        pytest.importorskip("scipy", reason="scipy is not installed; universal segmenters want it")
    model = auto_model(config.model_type).from_config(config)
    (model if kind.weights else config).save_pretrained(folder / "former")
    if config.model_type == "oneformer":
        tokenizer(folder / "former")
    return "--network", str(folder / "former")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    return make_set(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_learns_goes_on_and_teaches(name: str, tmp_path: Path, world: TinySet) -> None:
    kind = KINDS[name]
    words = words_of(kind, tmp_path)
    common: tuple[str | Path, ...] = (
        "--workspace",
        tmp_path,
        "--target",
        world.toml,
        "--target-data",
        world.root,
        "--device",
        "cpu",
    )
    line: tuple[str | Path, ...] = (
        "train", *words, *common, "--labels", world.root / "fused", "--size", kind.size, "--crop", kind.crop,
        "--batch-size", "2", "--workers", "1", "--save-every", "10", "--mirror", "--ema", "0.9", "--keep", "3",
    )  # fmt: skip

    whole = result_of(*line, "--steps", "30", "--name", "whole")
    out = tmp_path / "runs/tiny/whole"
    assert whole["steps"] == 30 and np.isfinite(whole["last_loss"])
    recipe = checkpoint.load(out / "last.pt")["meta"]["config"]
    assert recipe["optimizer"] == kind.optimizer

    # The run as it was after ten steps goes on to the same weights, bit for bit.
    stopped = tmp_path / "runs/tiny/stopped"
    stopped.mkdir()
    (stopped / "last.pt").write_bytes((out / "earlier/step-10.pt").read_bytes())
    assert result_of(*line, "--steps", "30", "--name", "stopped", "--resume")["resumed_from"] == 10
    once, twice = checkpoint.load(out / "last.pt"), checkpoint.load(stopped / "last.pt")
    for part in ("weights", "student"):
        assert once[part].keys() == twice[part].keys()
        assert all(torch.equal(value, twice[part][key]) for key, value in once[part].items())

    tested = result_of("test", "--weights", out / "last.pt", *common)
    assert tested["images"] == 2 and tested["miou"] is not None

    result_of("export-teacher", "second", "--weights", "whole", *common)
    with CertaintyReader(tmp_path / "certainty/tiny/second") as reader:
        assert len(reader) == 4 and reader.classes == CLASSES
        ours = {id: (reader.labels(id), reader.certainty(id)) for id in reader.ids}

    line = ("deploy", "whole", "--format", "torchscript", "--images", "2", *common[:-2])
    if kind.windowed:
        assert "a description cannot say its windows" in refused(*line)
    else:
        assert result_of(*line)["equal"] >= LEAST_EQUAL

    if whole["folder"] is not None:  # opened by the library, it says the same
        theirs = ("export-teacher", "third", "--weights", whole["folder"], *common)
        if kind.config is dpt:  # takes images of one size, which a folder cannot say
            return
        result_of(*theirs, *(("--size", kind.size) if kind.named else ()))
        with CertaintyReader(tmp_path / "certainty/tiny/third") as reader:
            for id, (labels, certainty) in ours.items():
                assert np.abs(reader.certainty(id).astype(int) - certainty).max() <= 1
                assert (reader.labels(id) != labels).mean() < 1e-3


# ---------------------------------------------------------------------------- parameters


NETWORKS = [
    "deeplabv3plus", "segformer", "beit", "upernet", "mask2former", "maskformer", "oneformer", "eomt",
    "smp:unet/tu-mobilenetv3_small_050", "daformer", "mrnet-bn",
]  # fmt: skip


def student_of(name: str) -> Student:
    if name == "deeplabv3plus":
        return build(deeplab(name, "tiny"), 3)
    if name == "daformer":
        return FAMILIES["teacher"]({"name": name, "options": plain_options(MIT)}, 3, False)
    if name == "mrnet-bn":
        return FAMILIES["teacher"]({"name": name, "heads": [0.5, 1.0]}, 3, True)
    if name.startswith("smp"):
        pytest.importorskip(
            "segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed"
        )
        return FAMILIES["smp"]({"_model_class": "Unet", "encoder_name": name.partition("/")[2]}, 3, True)
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = CONFIGS[name](library).to_dict()
    if settings["model_type"] == "oneformer":
        settings[TASK] = [1] * settings["task_seq_len"]
    return FAMILIES["transformers"](settings, 3, False)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_every_trained_parameter_is_in_one_group(name: str, optimizer: str) -> None:
    student = student_of(name)
    frozen = next(student.parameters()).requires_grad_(False)  # R-MRNet's norms are anyway
    if name == "mrnet-bn":
        layers = None  # a ResNet-101: too slow here
    else:
        side = 32 if name in ("beit", "eomt") else 64
        _, layers = run_once(student, torch.zeros(1, 3, side, side))
        assert layers.count > 1 and set(layers.of) <= set(student.parameters())
    decay = 1.0 if layers is None else 0.5
    config = TrainConfig(optimizer=optimizer, layer_decay=decay, weight_decay=0.1)
    groups = make_optimizer(student, config, layers).param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    expected = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    assert id(frozen) not in expected
    assert {id(parameter) for parameter in grouped} == expected
    rates = {group["lr_scale"] for group in groups}
    assert max(rates) == config.head_rate and (layers is None or min(rates) < 1)
    if optimizer == Optimizer.ADAMW:
        kinds = {bool(group["weight_decay"]): group for group in groups}
        assert set(kinds) == {False, True}
        assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deeplabv3plus", set()),
        ("segformer", set()),
        ("smp:unet/tu-mobilenetv3_small_050", set()),
        ("eomt", set()),
        ("daformer", set()),
        ("upernet", {"auxiliary_head"}),
        ("mask2former", {"model.pixel_level_module"}),  # a norm after Swin's last block
        ("oneformer", {"criterion.logit_scale", "model.pixel_level_module"}),
    ],
)
def test_what_takes_no_part_is_found(name: str, parts: set[str]) -> None:
    student = student_of(name).eval()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    side = 32 if name == "eomt" else 64
    left = {id(parameter) for parameter in unreached(student, torch.ones(2, 3, side, side))}
    names = {key for key, parameter in student.network.named_parameters() if id(parameter) in left}
    assert {next(part for part in parts if key.startswith(part)) for key in names} == parts
    assert not student.training and not student.varies
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_blocks_learn_at_rates_of_their_depth() -> None:
    student = student_of("segformer")
    _, layers = run_once(student, torch.zeros(1, 3, 32, 32))
    names = {id(parameter): name for name, parameter in student.network.named_parameters()}
    depth = {names[id(parameter)]: place for parameter, place in layers.of.items()}
    first, last = (f"segformer.stages.{k}.blocks.0.mlp.fc1.weight" for k in (0, 3))
    assert 0 < depth[first] < depth[last] == layers.count
    groups = groups_of(student, 10.0, matrices_alone=True, layer_decay=0.5, layers=layers)
    rate = {names[id(p)]: group.rate for group in groups for p in group.parameters}
    assert rate[last] == 1 and rate[first] == 0.5 ** (layers.count - depth[first])
    assert rate["decode_head.classifier.weight"] == 10


def test_recomputed_blocks_learn_the_same() -> None:
    for name in ("segformer", "smp:unet/tu-mobilenetv3_small_050"):
        gradients = []
        for again in (False, True):
            torch.manual_seed(0)
            student = student_of(name)
            assert not again or recompute_encoder(student) > 1
            torch.manual_seed(1)
            student(torch.ones(2, 3, 32, 32)).square().mean().backward()  # type: ignore[no-untyped-call]
            gradients.append([p.grad for p in student.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(gradients[1])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# ---------------------------------------------------------------------------- what is named


@pytest.mark.parametrize(
    "processor", ["SegformerImageProcessor", "BeitImageProcessor", "MobileViTImageProcessor"]
)
def test_input_as_the_library_makes_it(processor: str, tmp_path: Path) -> None:
    library: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    segformer(library).save_pretrained(tmp_path)
    made = getattr(library, processor)(size={"height": 32, "width": 64}, image_mean=[0.1, 0.2, 0.3])
    made.save_pretrained(tmp_path)
    start = named(str(tmp_path), None, CLASSES, lambda said: tmp_path)
    assert start is not None and start.init is None
    preprocessing = replace(start.network.preprocessing, size=(64, 32))
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    theirs = made(images=image, return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
    ours = preprocessing.normalise(torch.from_numpy(image)[None])
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5)

    # As it lies beside a tokenizer, in one file with that.
    alone = tmp_path / "preprocessor_config.json"
    (tmp_path / "processor_config.json").write_text(f'{{"image_processor": {alone.read_text()}}}')
    alone.unlink()
    again = named(str(tmp_path), None, CLASSES, lambda said: tmp_path)
    assert again is not None and again.network == start.network


@pytest.mark.parametrize(("said", "kept"), [(CLASSES, True), (("car", "road", "sky"), False)])
def test_a_head_is_kept_for_its_classes_alone(said: tuple[str, ...], kept: bool, tmp_path: Path) -> None:
    library: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    config = segformer(library)
    config.id2label = dict(enumerate(said))
    model = library.AutoModelForSemanticSegmentation.from_config(config)
    model.save_pretrained(tmp_path)
    start = named(None, tmp_path, CLASSES, lambda said: tmp_path)
    assert start is not None and start.init == tmp_path and start.recipe["layer_decay"] == 0.9
    student = build(start.network, len(CLASSES))
    told = initialise(student, tmp_path, start.network, CLASSES)
    assert (told is None) == kept
    for key, value in model.state_dict().items():
        same = torch.equal(value, student.state_dict()[key])
        assert same or (not kept and key.startswith("decode_head.classifier")), key
    other = library.SegformerConfig(hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1])
    library.AutoModelForSemanticSegmentation.from_config(other).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="so they are of another network"):
        initialise(student, tmp_path / "other", start.network, CLASSES)


class _Entry:
    """An entry point of a package."""

    name, value = "mine", "package:mine"

    def load(self) -> Callable[[int], Own]:
        return lambda classes: Own(
            Net(classes), Preprocessing(), encoder=("stem",), recipe={"learning_rate": 0.1}
        )


def test_a_package_brings_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("endauda_cli.teachers.starting", "endauda_cli.students.families"):
        monkeypatch.setattr(
            f"{module}.entry_points", lambda group: [_Entry()] if group.endswith("students") else []
        )
    start = named("mine", None, CLASSES, lambda said: tmp_path)
    assert start is not None and start.recipe == {"learning_rate": 0.1}
    student = build(start.network, 3)
    assert student.varies, "a package's network may choose at each step"
    assert student.encoder_parts == ("stem",) and "stem.weight" in student.state_dict()
    assert student(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert student.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 4, 4)
    assert from_record(tmp_path, to_record(start.network)).settings == {"name": "mine"}


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("nowhere", "neither a folder with a config.json, nor smp:NETWORK/ENCODER, nor one of dacs"),
        ("smp:unet", "expected smp:NETWORK/ENCODER"),
        ("smp:vnet/resnet18", "has no network vnet"),
    ],
)
def test_names_of_nothing_are_refused(said: str, complaint: str, tmp_path: Path) -> None:
    if "vnet" in said:
        pytest.importorskip(
            "segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed"
        )
    with pytest.raises(ConfigError, match=complaint):
        named(said, None, CLASSES, lambda said: tmp_path / said)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("family", "other"), ("settings", None), ("input", {}), ("output", {"align_corners": 1}), ("arch", 3),
        ("settings", {"name": "dacs", "options": {"size": [1, 2.5]}}), ("settings", {"name": "x"}),
        ("settings", {"name": "dacs", "heads": ["x"]}), ("settings", {"name": "daformer", "options": {"size": "b9"}}),
    ],
)  # fmt: skip
def test_forged_records_are_refused(part: str, value: object, tmp_path: Path) -> None:
    network = Network("teacher", "dacs", settings={"name": "dacs"}, preprocessing=Preprocessing(size=None))
    record = to_record(network)
    assert from_record(tmp_path / "x.pt", record).settings == {"name": "dacs"}
    torch.save(
        {"weights": {"a": torch.zeros(1)}, "meta": {"network": record | {part: value}}}, tmp_path / "x.pt"
    )
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        checkpoint.load_student(tmp_path / "x.pt", CLASSES)


def test_options_of_deeplabs_are_not_for_others(tmp_path: Path, world: TinySet) -> None:
    line = (
        "train",
        "--network",
        "dacs",
        "--backbone",
        "drn",
        "--target",
        world.toml,
        "--workspace",
        tmp_path,
    )
    assert refused(*line).startswith("--backbone: of DeepLabs, but dacs was named")


def test_a_network_that_is_typed_replaces_the_files_backbone(tmp_path: Path, world: TinySet) -> None:
    line = (
        "train", "--network", "smp:fpn/mobilenet_v2", "--labels", world.root / "fused", "--target", world.toml,
        "--target-data", world.root, "--workspace", tmp_path, "--size", "64x64", "--crop", "64x64", "--steps", "1",
        "--batch-size", "2", "--workers", "1", "--name", "fpn", "--device", "cpu",
    )  # fmt: skip
    (tmp_path / "endauda.toml").write_text('[train]\nbackbone = "tiny"\n')
    assert result_of(*line)["steps"] == 1
    assert checkpoint.load(tmp_path / "runs/tiny/fpn/last.pt")["meta"]["network"]["family"] == "smp"
