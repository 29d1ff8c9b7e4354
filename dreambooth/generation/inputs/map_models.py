"""Maps of depth and of poses by models of transformers, in the colours that the published ControlNets learned.

Shapes: H/W height and width in pixels, K keypoints.
"""

import colorsys
import logging
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import snapshot_download
from PIL import Image, ImageDraw

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families.inspection import LOADING_ERRORS
from dreambooth.hub import downloaded

DEPTH_MODEL = (
    "depth-anything/Depth-Anything-V2-Small-hf"  # Yang et al. 2024, arXiv 2406.09414; Apache-2.0, 25 M weights
)
POSE_MODEL = "usyd-community/vitpose-base-simple"  # Xu et al. 2022, arXiv 2204.12484; Apache-2.0
PEOPLE_MODEL = "PekingU/rtdetr_r50vd_coco_o365"  # Zhao et al. 2023, arXiv 2304.08069; where people are; Apache-2.0
FILES = ["*.json", "*.safetensors"]
PERSON = "person"  # COCO's class
MIN_SCORE = 0.3  # of a keypoint, and of a person

# OpenPose's 18 points by COCO's 17, which lack the neck: it lies between the shoulders.
NECK = -1
BODY = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
SHOULDERS = (5, 6)
# Bones between those 18 points, in the order of OpenPose's colours.
BONES = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
BONE_LIGHT = 0.6  # bones are darker than the points at their ends

Points = Sequence[tuple[float, float] | None]  # (x, y) in pixels; None: not seen

logger = logging.getLogger(__name__)


def depth_map(image: Image.Image, name: str = DEPTH_MODEL) -> Image.Image:
    """Return the depth of an image, near is white, as an RGB image of its size. Raises ModelError."""
    processor, network = _load("AutoModelForDepthEstimation", name)
    inputs = processor(images=image, return_tensors="pt")
    depth_11HW = network(**inputs).predicted_depth[None]
    depth_HW = F.interpolate(depth_11HW, (image.height, image.width), mode="bicubic")[0, 0]
    depth_HW = depth_HW - depth_HW.min()
    nearest = float(depth_HW.max()) or 1.0  # of a flat map nothing is near
    levels_HW = (255 * depth_HW / nearest).round().to(torch.uint8).numpy()
    return Image.fromarray(levels_HW).convert("RGB")


def pose_map(image: Image.Image, name: str = POSE_MODEL, people: str = PEOPLE_MODEL) -> Image.Image:
    """Return the skeletons of the people in an image, in OpenPose's colours on black, as an RGB image of its size.

    Raises UserError where nobody is seen, ModelError.
    """
    boxes = people_in(image, people)
    processor, network = _load("VitPoseForPoseEstimation", name)
    inputs = processor(image, boxes=[boxes], return_tensors="pt")
    found = processor.post_process_pose_estimation(network(**inputs), boxes=[boxes])[0]
    return draw_skeletons([_body(each["keypoints"], each["scores"]) for each in found], image.size)


def people_in(image: Image.Image, name: str) -> list[list[float]]:
    """Return the boxes of people, [left, top, width, height] in pixels. Raises UserError where nobody is seen."""
    processor, network = _load("AutoModelForObjectDetection", name)
    inputs = processor(images=image, return_tensors="pt")
    found = processor.post_process_object_detection(
        network(**inputs), target_sizes=[(image.height, image.width)], threshold=MIN_SCORE
    )[0]
    names = [network.config.id2label[label] for label in found["labels"].tolist()]
    corners = [box for box, name in zip(found["boxes"].tolist(), names, strict=True) if name == PERSON]
    if not corners:
        raise UserError("--control pose: nobody is seen in the image; draw the skeleton: pose=map:IMAGE")
    return [[left, top, right - left, bottom - top] for left, top, right, bottom in corners]


def _body(keypoints_K2: torch.Tensor, scores_K: torch.Tensor) -> Points:
    """Return OpenPose's 18 points of COCO's 17."""
    points = [
        (float(x), float(y)) if score >= MIN_SCORE else None
        for (x, y), score in zip(keypoints_K2, scores_K, strict=True)
    ]
    left, right = (points[index] for index in SHOULDERS)
    neck = None if left is None or right is None else ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return [neck if index == NECK else points[index] for index in BODY]


def draw_skeletons(bodies: Sequence[Points], size: tuple[int, int]) -> Image.Image:
    """Return skeletons of 18 points each, hues in turn around the circle, on black, RGB. size: (width, height)."""
    image = Image.new("RGB", size, "black")
    draw, thick = ImageDraw.Draw(image), max(1, round(min(size) / 128))
    for points in bodies:
        for number, (one, other) in enumerate(BONES):
            if (start := points[one]) is not None and (end := points[other]) is not None:
                draw.line([start, end], _hue(number, BONE_LIGHT), width=2 * thick)
        for number, point in enumerate(points):
            if point is not None:
                x, y = point
                draw.ellipse((x - thick, y - thick, x + thick, y + thick), _hue(number, 1.0))
    return image


def _hue(number: int, light: float) -> tuple[int, int, int]:
    """Return OpenPose's colour of a point or bone: hues 20 degrees apart from red on."""
    red, green, blue = (round(255 * light * level) for level in colorsys.hsv_to_rgb(number / 18, 1, 1))
    return red, green, blue


@cache
def _load(class_name: str, name: str) -> tuple[Any, Any]:
    """Load a network of transformers and its processor, in float32 on the CPU. Raises ModelError."""
    path = Path(os.path.expanduser(name))
    download = partial(snapshot_download, name, allow_patterns=FILES)
    try:
        folder = path if path.is_dir() else downloaded(name, None, download)
    except ModelError as error:
        raise ModelError(f"{error} (it makes a map for --control; KIND=map:IMAGE names one that is ready)") from error
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        network = getattr(transformers, class_name).from_pretrained(folder, use_safetensors=True)
    except LOADING_ERRORS as error:
        raise ModelError(f"{name}: cannot be loaded for --control: {first_line(error)}") from error
    return processor, network.eval()
