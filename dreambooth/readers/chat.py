"""Any other image-text-to-text model of transformers, asked through its chat template: Qwen-VL, LLaVA, Gemma, ..."""

from collections.abc import Sequence

import torch
import transformers
from PIL import Image

from dreambooth.errors import ModelError, UserError
from dreambooth.readers.likelihood import end_likelihood, num_answer_tokens
from dreambooth.readers.loading import ReaderSource, load_network, load_part, moved
from dreambooth.readers.protocols import AttendedCaption, GroundedCaption
from dreambooth.readers.text_options import TextOptions

CAPTION = "Describe this image in one short sentence."
LANGUAGES = {"de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "pt": "Portuguese"}
ANSWER = "{question} Answer in a few words."


class ChatReader:
    """Describe and answer by AutoModelForImageTextToText. Raises ModelError for a model without a chat template."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.processor = load_part(source.name, transformers.AutoProcessor)
        if not getattr(self.processor, "chat_template", None):
            raise ModelError(f"{source.title}: has no chat template, so there is no telling how it wants to be asked")
        self.network = load_network(source, transformers.AutoModelForImageTextToText)
        self.processor.tokenizer.padding_side = "left"

    def caption(self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None) -> list[str]:
        wanted = "" if language is None else f" Write in {LANGUAGES.get(language, language)}."
        return self._write(images, CAPTION + wanted, options)

    def answer(self, images: Sequence[Image.Image], question: str, options: TextOptions) -> list[str]:
        return self._write(images, ANSWER.format(question=question), options)

    def ground(
        self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None
    ) -> list[GroundedCaption]:
        raise UserError(f"--ground: {self.name} has no boxes that are read here; name a Kosmos-2 with --model")

    def attend(
        self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None
    ) -> list[AttendedCaption]:
        raise UserError(
            f"--attention: {self.name} has no queries between image and text; name a BLIP-2 or a Kosmos-2 with --model"
        )

    def likelihood(self, images: Sequence[Image.Image], question: str, answer: str) -> list[float]:
        prompt = self._prompt(ANSWER.format(question=question))
        written = answer if prompt[-1:].isspace() else f" {answer}"
        num = num_answer_tokens(self.processor.tokenizer, prompt, written)
        return end_likelihood(self.network, self._inputs(images, prompt + written), num)

    def _prompt(self, request: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": request}]
        prompt: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return prompt

    def _inputs(self, images: Sequence[Image.Image], text: str) -> dict[str, torch.Tensor]:
        begin = self.processor.tokenizer.bos_token
        # A template that writes the beginning's token has the tokenizer write no second one.
        tokens = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        inputs = self.processor(
            images=[[image] for image in images], text=[text] * len(images), padding=True, return_tensors="pt", **tokens
        )
        return moved(inputs, self.network)

    @torch.no_grad()
    def _write(self, images: Sequence[Image.Image], request: str, options: TextOptions) -> list[str]:
        torch.manual_seed(options.seed)
        inputs = self._inputs(images, self._prompt(request))
        ids_BT = self.network.generate(**inputs, **options.as_generation_config())
        new_BT = ids_BT[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new_BT, skip_special_tokens=True)]
