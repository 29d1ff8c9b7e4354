"""Make what steers a sampling beside its prompts ready for the sampler: a start image, controls, a style."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from dreambooth.families import DenoiserInputs, Family
from dreambooth.generation.inputs.canvas import Canvas, make_canvas
from dreambooth.generation.inputs.controls import Control, attach_controls, control_fields, prepare_controls
from dreambooth.generation.inputs.from_images import FromImages, checked
from dreambooth.generation.inputs.image_style import Style, check_style, prepare_style
from dreambooth.generation.inputs.init_latents import InitLatents, encode_canvas
from dreambooth.generation.models.loading import Model
from dreambooth.generation.request import ImageRequest
from dreambooth.generation.schedulers import SamplerStep

ChangeLatents = Callable[[Tensor, int, int], Tensor]  # latents, sampler steps taken and in all -> latents


@dataclass(frozen=True)
class ImageInputs:
    """Hold an image to start from as latents, controls, and a style. The same for all images of a batch.

    change: is done to the latents after each step; None: nothing.
    """

    init: InitLatents | None = None
    controls: tuple[Control, ...] = ()
    style: Style | None = None
    change: ChangeLatents | None = None

    def applied(self, family: Family) -> contextlib.AbstractContextManager[None]:
        """Change the family's denoiser as the style needs it, while the block runs."""
        return contextlib.nullcontext() if self.style is None else self.style.applied(family)

    def predict(self, family: Family, inputs: DenoiserInputs, step: SamplerStep, num_images: int) -> Tensor:
        """Return the family's prediction, held to the controls and in the style.

        num_images: samples with a prompt; before them come as many without it where there is guidance.
        """
        acting = [each for each in self.controls if each.acts(step.number, step.num_steps)]
        held_to = control_fields(family, acting, inputs, num_images)
        inputs = replace(inputs, conditioning=inputs.conditioning | held_to)
        if self.style is None:
            return family.predict(inputs.noisy_BCHW, inputs.t_B, inputs.conditioning)
        return self.style.predict(family, inputs, step)


@dataclass(frozen=True)
class Prepared:
    """Hold what the sampler gets of a request's images, and what its result goes into."""

    inputs: ImageInputs
    canvas: Canvas | None = None

    def finish(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return generated images with what was to be kept of the image that they started from."""
        return [image if self.canvas is None else self.canvas.finish(image) for image in images]


def attached(model: Model, images: FromImages) -> FromImages:
    """Return what a request takes from images, its files as they are now, with ControlNets loaded beside a model.

    Raises UserError for a file that cannot be read, or a family in which it cannot be taken; ModelError for a
    ControlNet.
    """
    images = checked(images)
    check_style(model, images.style)
    return replace(images, controls=attach_controls(model, images.controls))


def prepare(model: Model, request: ImageRequest) -> Prepared:
    """Read, cut and encode the images of a request. Raises UserError for a file that cannot be read, ModelError."""
    size = (request.width, request.height)
    controls = prepare_controls(model, request.images.controls, size)
    style = prepare_style(model, request.images.style, size)
    if request.images.init is None:
        return Prepared(ImageInputs(None, controls, style))
    canvas = make_canvas(request.images.init, size)
    init = encode_canvas(model.family, canvas, request.images.init.strength)
    return Prepared(ImageInputs(init, controls, style), canvas)
