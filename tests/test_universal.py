"""Universal segmenters as teachers: their own pre- and postprocessing, and what is stored of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from endauda_cli.archive import CertaintyReader
from endauda_cli.config import InferenceConfig
from endauda_cli.deploying.formats import FORMATS, Wish
from endauda_cli.errors import CheckpointError
from endauda_cli.exporting import teacher_maps
from endauda_cli.gridding import has_grid
from endauda_cli.models.universal import UNIVERSAL, semantic_scores, windows
from endauda_cli.progress import silent
from endauda_cli.segmenter import Procedure, Segmenter, bands, certainty_maps, log_probabilities, tempered
from endauda_cli.teachers import open_teacher
from endauda_cli.teachers.programs import open_program
from endauda_cli.types import Format
from tests.support.networks import tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.teachers import Teacher

CLASSES = ("road", "car", "person", "sky")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("scipy", reason="scipy is not installed; the losses of universal segmenters want it")


def swin() -> Any:
    return transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


NAMES: dict[str, Any] = {"id2label": dict(enumerate(CLASSES))}
SIZES: dict[str, Any] = {"num_queries": 7, "hidden_dim": 32, "num_attention_heads": 2, "encoder_layers": 1,
                         "encoder_feedforward_dim": 16, "dim_feedforward": 16, "decoder_layers": 2}  # fmt: skip
SHORTEST = {"shortest_edge": 64, "longest_edge": 100}


def mask2former() -> tuple[Any, Any]:
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(), feature_size=32, mask_feature_size=32, **SIZES, **NAMES
    )
    return transformers.Mask2FormerForUniversalSegmentation(config), transformers.Mask2FormerImageProcessor(
        size=SHORTEST, ignore_index=255
    )


def maskformer() -> tuple[Any, Any]:
    decoder = transformers.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=7,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **NAMES
    )
    return transformers.MaskFormerForInstanceSegmentation(config), transformers.MaskFormerImageProcessor(
        size={"height": 48, "width": 80}, ignore_index=255
    )


def oneformer(training: bool = False) -> tuple[Any, Any]:
    config = transformers.OneFormerConfig(
        backbone_config=swin(), conv_dim=32, mask_dim=32, text_encoder_width=64, text_encoder_num_layers=1,
        text_encoder_vocab_size=600, query_dec_layers=1, is_training=training, **(SIZES | {"decoder_layers": 3}),
        **NAMES,
    )  # fmt: skip
    images = transformers.OneFormerImageProcessor(size=SHORTEST, ignore_index=255)
    return transformers.OneFormerForUniversalSegmentation(config), images


def eomt() -> tuple[Any, Any]:
    config = transformers.EomtConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=1, image_size=32, patch_size=8,
        num_upscale_blocks=1, num_blocks=1, num_queries=7, num_register_tokens=1, **NAMES,
    )  # fmt: skip
    return transformers.EomtForUniversalSegmentation(config), transformers.EomtImageProcessor(
        size={"shortest_edge": 32, "longest_edge": None}, do_split_image=True
    )


MODELS = {"mask2former": mask2former, "maskformer": maskformer, "oneformer": oneformer, "eomt": eomt}


class Made:
    """A tiny network with random weights in a folder, and what its library makes of an image."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        torch.manual_seed(3)
        self.model, self.images = MODELS[family]()
        self.model.eval()
        with torch.no_grad():  # so that classes and masks differ at all
            for name, value in self.model.named_parameters():
                if any(
                    part in name for part in ("class_predictor", "mask_embed", "mask_head", "query.weight")
                ):
                    value.mul_(20)
        self.model.save_pretrained(folder)
        self.words: dict[str, Any] = {}
        self.processor = self.images
        if family == "oneformer":
            self.processor = transformers.OneFormerProcessor(self.images, tokenizer(folder / "tokens"))
            self.words = {"task_inputs": ["semantic"]}
        self.processor.save_pretrained(folder)

    def scores(self, path: Path) -> torch.Tensor:
        """(K, H, W) by the library alone."""
        with Image.open(path) as image, torch.inference_mode():
            size = (image.height, image.width)
            inputs = self.processor(images=image, return_tensors="pt", **self.words)
        pixels = inputs["pixel_values"]
        given = {"task_inputs": inputs["task_inputs"]} if self.words else {}
        if self.family == "eomt":
            given["patch_offsets"] = inputs["patch_offsets"]
        with torch.inference_mode():
            output = self.model(
                pixel_values=torch.stack(pixels) if isinstance(pixels, list) else pixels, **given
            )
            (made,) = self.processor.post_process_semantic_segmentation(
                output, target_sizes=[size], return_segmentation_scores=True
            )
        assert torch.equal(made.segmentation, made.segmentation_scores.argmax(0))
        scores: torch.Tensor = made.segmentation_scores
        return scores


@pytest.fixture(scope="module", params=list(MODELS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp("made") / request.param)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Wide, high and square, such that the families' resizing has to round."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for width, height in ((130, 64), (60, 90), (96, 96)):
        small = np.random.default_rng(width).integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"{width}.png")
        image.save(paths[-1])
    return paths


def maps(teacher: Teacher, images: list[Path]) -> list[tuple[Any, Any]]:
    return list(teacher_maps(teacher, images, InferenceConfig(), torch.device("cpu"), silent))


def test_as_its_own_processor(made: Made, images: list[Path]) -> None:
    teacher = open_teacher(made.folder, CLASSES)
    assert teacher.attributes(CLASSES)["softmax"] == "of each mask's classes, summed over masks"
    seen = set()
    for path, (labels, certainty) in zip(images, maps(teacher, [*images]), strict=True):
        scores = made.scores(path)
        expected = scores / scores.sum(0).clamp(min=1)
        # Resizing differs by a level of 255 between libraries; where two classes are that near, either is right.
        two = expected.topk(2, 0).values
        sure = ((two[0] - two[1]) > 0.02).numpy()
        assert sure.mean() > 0.1
        assert (labels == scores.argmax(0).numpy())[sure].all()
        assert (labels == scores.argmax(0).numpy()).mean() > 0.97
        assert np.abs(certainty - 100 * expected.numpy()).mean() < 1  # truncated: half of it on average
        seen |= set(np.unique(labels))
    assert len(seen) > 1


def test_from_the_same_input_the_same_scores(made: Made, images: list[Path]) -> None:
    """Without the difference of the resizing: labels are equal, every one of them."""
    teacher = open_teacher(made.folder, CLASSES)
    for path in images:
        with Image.open(path) as image:
            size = (image.height, image.width)
            pixels = made.processor(
                images=image, return_tensors="pt", **made.words,
                **({"do_split_image": False} if made.family == "eomt" else {}),
            )["pixel_values"]  # fmt: skip
        with torch.inference_mode():
            passes = [teacher.segmenter.network(torch.as_tensor(np.stack(pixels)))[0]]
            values = torch.cat([band.values for band in bands(teacher.segmenter, passes, size)], 1)
        scores = made.scores(path)
        torch.testing.assert_close(values, scores, rtol=0, atol=1e-4)
        labels, _ = certainty_maps(teacher.segmenter, passes, size)
        near = scores.topk(2, 0).values
        assert torch.equal(labels.long(), scores.argmax(0)) or (near[0] - near[1]).min() < 1e-4


def test_an_image_is_told_the_same_beside_others(made: Made) -> None:
    """On a card several are run at once unless the user says otherwise. Rounding of random weights, which ``Made``
    multiplied, is all that may differ."""
    segmenter = open_teacher(made.folder, CLASSES).segmenter
    assert segmenter.batches
    x = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together, alone = segmenter.network(x), torch.cat([segmenter.network(one[None]) for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-2, atol=1e-3)


def test_every_family_is_tested() -> None:
    assert {name.removesuffix("_dinov3") for name in UNIVERSAL} == MODELS.keys()


def test_sizes_are_made_as_the_library_does(made: Made) -> None:
    if made.family == "maskformer":
        pytest.skip("its folder says height and width")
    preprocessing = open_teacher(made.folder, CLASSES).segmenter.preprocessing
    switches = {"do_split_image": False} if made.family == "eomt" else {}
    for width, height in ((130, 64), (60, 90), (96, 96), (211, 33), (64, 64), (17, 401), (97, 64)):
        picture = np.zeros((height, width, 3), np.uint8)
        theirs = made.images(images=picture, return_tensors="pt", **switches)["pixel_values"][0]
        assert preprocessing.input_size(width, height) == (theirs.shape[2], theirs.shape[1])


def test_archives_hold_percents(made: Made, workspace_of: Any) -> None:
    run, reader = workspace_of(made.folder)
    assert run == 0
    with reader as archive:
        assert archive.attributes["softmax"].startswith("of each mask's classes")
        for image in archive.ids:
            certainty = archive.certainty(image)
            assert (
                certainty.sum(0).max() <= 100 and (certainty.argmax(0) == archive.labels(image)).mean() > 0.9
            )


@pytest.mark.slow
@pytest.mark.parametrize("format", [Format.PT2, Format.ONNX])
def test_written_as_a_program(made: Made, format: Format, tmp_path: Path) -> None:
    """Of EoMT two squares beside each other; TorchScript is tried with students."""
    network = open_teacher(made.folder, CLASSES).segmenter.network
    before = dict(network.state_dict())
    path = tmp_path / f"network{FORMATS[format].ending}"
    FORMATS[format].write(Wish(network, path, (32, 64), False, made.folder))
    program, size = open_program(path, len(CLASSES), says="scores")
    x = torch.randn(3, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,), expected = program(x), network(x)
    assert size == (64, 32)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    after = network.state_dict()
    assert list(after) == list(before) and all(
        torch.equal(after[key], value) for key, value in before.items()
    )


@pytest.fixture
def workspace_of(images: list[Path], tmp_path: Path) -> Any:
    """Export a folder's network over the images by the command, with the default codec."""
    from endauda_cli.cli import main

    (tmp_path / "mine.toml").write_text(
        f'name = "mine"\nclasses = {list(CLASSES)}\n[train]\nimages = "{images[0].parent}/*.png"\n'
    )

    def export(folder: Path) -> tuple[int, CertaintyReader]:
        code = main(
            ["export-teacher", "u", "--weights", str(folder), "--workspace", str(tmp_path), "--target",
             str(tmp_path / "mine.toml"), "--device", "cpu", "--quiet"]
        )  # fmt: skip
        return code, CertaintyReader(tmp_path / "certainty/mine/u")

    return export


# ---------------------------------------------------------------------------- kernels


def test_scores_are_the_naive_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 5, 3, 6, generator=generator)
    found = semantic_scores(classes, masks)
    for b, k, y, x in ((0, 0, 0, 0), (1, 2, 2, 5), (0, 1, 1, 3)):
        shares = [classes[b, q].exp()[k] / classes[b, q].exp().sum() for q in range(5)]
        expected = sum(shares[q] / (1 + (-masks[b, q, y, x]).exp()) for q in range(5))
        assert abs(float(found[b, k, y, x]) - float(expected)) < 1e-5


def test_few_masks_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(1, 9, 4, generator=generator), torch.randn(1, 9, 3, 6, generator=generator)
    whole = semantic_scores(classes, masks, (7, 11))
    monkeypatch.setattr("endauda_cli.models.universal._FLOATS", 2 * 7 * 11)
    torch.testing.assert_close(semantic_scores(classes, masks, (7, 11)), whole)


@pytest.mark.parametrize("size", [(32, 32), (32, 65), (100, 32), (70, 90), (32, 127)])
def test_windows_cover_and_stay_inside(size: tuple[int, int]) -> None:
    count = np.zeros((1, *size), int)
    for window in windows(size, 32):
        assert count[window].shape == (1, 32, 32)
        count[window] += 1
    assert count.min() == 1 and count.max() <= 4


def scored(temperature: float = 1.0) -> Segmenter:
    return Segmenter(torch.nn.Identity(), procedure=Procedure(softmax="scores"), temperature=temperature)


def test_what_nobody_claims_is_not_dealt_out() -> None:
    values = torch.tensor([[0.9, 0.02, 1.5, 0.0], [0.05, 0.01, 0.5, 0.0]])[:, None]  # (K, 1, 4)
    labels, certainty = certainty_maps(scored(), [values], (1, 4))
    assert labels.tolist() == [[0, 0, 0, 0]]
    assert certainty[:, 0].T.tolist() == [[90, 5], [2, 1], [75, 25], [0, 0]]
    softer, softened = certainty_maps(scored(2.0), [values], (1, 4))
    assert torch.equal(softer, labels)
    assert softened[:, 0, 1].sum() < 40 and softened[:, 0, 2].sum() in (99, 100)


def test_a_temperature_of_one_changes_nothing() -> None:
    values = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) * 0.5
    log = log_probabilities(scored(), values)
    torch.testing.assert_close(tempered(scored(), log, 1.0), values / values.sum(0).clamp(min=1))


def test_no_grid_says_scores() -> None:
    """Grids are enlarged to logits or probabilities that sum to 1; these are neither."""
    assert has_grid(Segmenter(torch.nn.Identity())) and not has_grid(scored())


# ---------------------------------------------------------------------------- folders


def test_oneformer_without_words(tmp_path: Path) -> None:
    made = Made("oneformer", tmp_path / "network")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (made.folder / name).unlink(missing_ok=True)
    with pytest.raises(
        CheckpointError, match=r"^\S+: no tokenizer\.json and no vocab\.json with merges\.txt, but"
    ):
        open_teacher(made.folder, CLASSES)


def test_oneformer_that_was_saved_in_training(tmp_path: Path, images: list[Path]) -> None:
    made = Made("oneformer", tmp_path / "network")
    model, _ = oneformer(training=True)
    model.save_pretrained(made.folder)
    assert len(maps(open_teacher(made.folder, CLASSES), images)) == len(images)


def test_oneformer_names_classes_on_a_hub(tmp_path: Path) -> None:
    """As all published folders do, in the older form, where images have a file of their own."""
    made = Made("oneformer", tmp_path / "network")
    whole = json.loads((made.folder / "processor_config.json").read_text())
    (made.folder / "processor_config.json").unlink()
    settings = {**whole["image_processor"], "class_info_file": "cityscapes_panoptic.json",
                "repo_path": "shi-labs/oneformer_demo", "image_processor_type": "OneFormerImageProcessor"}  # fmt: skip
    (made.folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert open_teacher(made.folder, CLASSES).segmenter.preprocessing.shorter_side == 64


def test_eomt_that_pads_is_refused_and_a_size_helps(tmp_path: Path, images: list[Path]) -> None:
    """Its semantic post-processing enlarges the padding with the image, so labels would be moved."""
    made = Made("eomt", tmp_path / "network")
    transformers.EomtImageProcessor(
        size={"shortest_edge": 32, "longest_edge": 32}, do_pad=True, do_split_image=False
    ).save_pretrained(made.folder)
    with pytest.raises(CheckpointError, match=r"do_pad.*give --size"):
        open_teacher(made.folder, CLASSES)
    ((labels, _),) = maps(open_teacher(made.folder, CLASSES, size=(32, 32)), images[:1])
    assert labels.shape == (64, 130)


def test_eomt_at_another_size_is_cut_both_ways(tmp_path: Path, images: list[Path]) -> None:
    made = Made("eomt", tmp_path / "network")
    teacher = open_teacher(made.folder, CLASSES, size=(80, 50))
    with torch.inference_mode():
        scores = teacher.segmenter.network(torch.zeros(1, 3, 50, 80))
    assert scores.shape == (1, len(CLASSES), 50, 80)
    with pytest.raises(CheckpointError, match="does not take an input of 16x16"):
        maps(open_teacher(made.folder, CLASSES, size=(16, 16)), images[:1])


def test_a_tensor_of_the_folder_is_missing(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    made = Made("mask2former", tmp_path / "network")
    path = made.folder / "model.safetensors"
    state = safetensors.load_file(path)
    state.pop("criterion.empty_weight", None)  # of the loss: older folders lack it
    safetensors.save_file(state, path, metadata={"format": "pt"})
    open_teacher(made.folder, CLASSES)
    state.pop("class_predictor.weight")
    safetensors.save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"have no 'class_predictor\.weight'"):
        open_teacher(made.folder, CLASSES)
