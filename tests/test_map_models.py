"""Maps of depth and poses by real networks of transformers at tiny size, with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from dreambooth.errors import ModelError, UserError
from dreambooth.generation.inputs.map_models import BODY, _body, depth_map, draw_skeletons, people_in, pose_map


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Depth Anything of random weights."""
    torch.manual_seed(0)
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, **stages
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    folder = tmp_path_factory.mktemp("depth")
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    side = {"height": 28, "width": 28}
    DPTImageProcessorPil(size=side, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pose_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViTPose of random weights, for COCO's 17 points."""
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        out_features=["stage1"],
    )
    config = VitPoseConfig(backbone_config=backbone, use_simple_decoder=True, num_labels=17, scale_factor=4)
    folder = tmp_path_factory.mktemp("pose")
    VitPoseForPoseEstimation(config).save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def people_model(folder: Path, name: str) -> str:
    """Write a detector of random weights with one class."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[32, 32],
        patch_size=16,
        num_detection_tokens=3,
        id2label={0: name},
        label2id={name: 0},
    )
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_depth_fills_all_grey_levels_at_the_images_size(depth_model: Path, photo: Image.Image) -> None:
    found = depth_map(photo, str(depth_model))
    levels_HWC = np.asarray(found)
    assert (found.mode, found.size) == ("RGB", photo.size)
    assert (levels_HWC == levels_HWC[..., :1]).all()
    assert levels_HWC.max() - levels_HWC.min() > 200


@torch.no_grad()
def test_a_pose_is_found_in_the_boxes_of_people(pose_model: Path, photo: Image.Image, tmp_path: Path) -> None:
    people = people_model(tmp_path / "people", "person")
    boxes = people_in(photo, people)
    assert boxes
    assert all(len(box) == 4 for box in boxes)
    found = pose_map(photo, str(pose_model), people)
    assert (found.mode, found.size) == ("RGB", photo.size)
    with pytest.raises(UserError, match="nobody is seen in the image; draw the skeleton: pose=map:IMAGE"):
        people_in(photo, people_model(tmp_path / "cats", "cat"))


def test_a_model_that_is_not_there_is_named(photo: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none: there is no such folder.*KIND=map:IMAGE names one"):
        depth_map(photo, str(tmp_path / "none"))


def test_a_skeleton_is_drawn_where_its_points_are() -> None:
    points = torch.tensor([[10.0 + 2 * number, 20.0 + number] for number in range(17)])
    scores = torch.ones(17)
    scores[9] = 0.0  # the left wrist is not seen
    body = _body(points, scores)
    assert len(body) == len(BODY) == 18
    assert body[0] == (10.0, 20.0), "the nose"
    assert body[1] == (21.0, 25.5), "the neck lies between the shoulders"
    assert body[7] is None
    image = np.asarray(draw_skeletons([body], (64, 64)))
    assert tuple(image[20, 10]) == (255, 0, 0), "OpenPose's nose is red"
    assert not np.asarray(draw_skeletons([[None] * 18], (64, 64))).any()
