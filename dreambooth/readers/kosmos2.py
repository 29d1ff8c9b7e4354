"""Kosmos-2 (Peng et al. 2023, arXiv 2306.14824): captions whose phrases are tied to boxes, by tokens of patches."""

import math
from collections.abc import Sequence

import torch
import transformers
from PIL import Image
from transformers.models.kosmos2.processing_kosmos2 import clean_text_and_extract_entities_with_bboxes

from dreambooth.errors import UserError
from dreambooth.readers.attention import TAG, attention_in_numbers, mean_attention, seen_part, word_maps
from dreambooth.readers.likelihood import end_likelihood, num_answer_tokens
from dreambooth.readers.loading import ReaderSource, load_network, load_part, moved
from dreambooth.readers.protocols import AttendedCaption, GroundedCaption, PhraseBox
from dreambooth.readers.text_options import TextOptions

GROUNDING = "<grounding>"  # before a text whose phrases get boxes
CAPTION = " An image of"
QUESTION = " Question: {question} Answer:"


class Kosmos2Reader:
    """Describe, answer and ground by Kosmos2ForConditionalGeneration.

    languages: that the config names beside English, each with a tag of its own (`<de>`) before the caption.
    """

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network = load_network(source, transformers.Kosmos2ForConditionalGeneration)
        self.processor = load_part(source.name, transformers.AutoProcessor)
        self.languages: tuple[str, ...] = tuple(getattr(self.network.config, "languages", ()))

    def caption(self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None) -> list[str]:
        return [text for text, _ in self._write(images, self._opening(language), options)]

    def answer(self, images: Sequence[Image.Image], question: str, options: TextOptions) -> list[str]:
        inputs, ids_BT = self._generate(images, QUESTION.format(question=question), options)
        new_BT = ids_BT[:, inputs["input_ids"].shape[1] :]
        written = self.processor.batch_decode(new_BT, skip_special_tokens=True)
        return [self._parsed(text)[0].strip() for text in written]

    def ground(
        self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None
    ) -> list[GroundedCaption]:
        found = self._write(images, GROUNDING + self._opening(language), options)
        grounded = []
        for image, (text, boxes) in zip(images, found, strict=True):
            seen = seen_part(self.processor.image_processor, image.size)
            grounded.append(GroundedCaption(text, tuple(box.placed(seen) for box in boxes)))
        return grounded

    def likelihood(self, images: Sequence[Image.Image], question: str, answer: str) -> list[float]:
        prompt, written = QUESTION.format(question=question), f" {answer}"
        num = num_answer_tokens(self.processor.tokenizer, prompt, written)
        return end_likelihood(self.network, self._inputs(images, prompt + written), num)

    def _opening(self, language: str | None) -> str:
        if language in (None, "en"):
            return CAPTION
        if language not in self.languages:
            known = ", ".join(("en", *self.languages))
            raise UserError(f"--language {language}: {self.name} writes {known}; name another --model")
        return f"<{language}>"

    def _inputs(self, images: Sequence[Image.Image], text: str) -> dict[str, torch.Tensor]:
        queries, texts = self.network.config.latent_query_num, [text] * len(images)
        inputs = self.processor(text=texts, images=list(images), num_image_tokens=queries, return_tensors="pt")
        names = ("pixel_values", "input_ids", "attention_mask", "image_embeds_position_mask")
        return moved({name: inputs[name] for name in names}, self.network)

    @torch.no_grad()
    def attend(
        self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None
    ) -> list[AttendedCaption]:
        inputs, ids_BT = self._generate(images, self._opening(language), options)
        begin, queries = inputs["input_ids"].shape[1], self.network.config.latent_query_num
        new_BT = torch.zeros_like(ids_BT[:, begin:])
        is_query_BT = torch.cat([inputs["image_embeds_position_mask"], new_BT], dim=1)
        with attention_in_numbers(self.network):
            looked = self.network(
                pixel_values=inputs["pixel_values"],
                input_ids=ids_BT,
                attention_mask=torch.cat([inputs["attention_mask"], new_BT + 1], dim=1),
                image_embeds_position_mask=is_query_BT,
                output_attentions=True,
            )
        text_BTT = mean_attention(looked.attentions)
        # A query attends to the class token, the patches and the queries; the patches alone are shown.
        image_BQP = mean_attention([looked.projection_attentions])[:, :, 1:-queries]
        found = []
        for number, image in enumerate(images):
            text_TQ = text_BTT[number, begin - 1 : -1, is_query_BT[number].bool().cpu()]
            maps = word_maps(self.processor.tokenizer, ids_BT[number, begin:], text_TQ, image_BQP[number])
            text, _ = self._parsed(self.processor.decode(ids_BT[number], skip_special_tokens=True))
            found.append(AttendedCaption(text, maps, seen_part(self.processor.image_processor, image.size)))
        return found

    def _write(
        self, images: Sequence[Image.Image], prompt: str, options: TextOptions
    ) -> list[tuple[str, tuple[PhraseBox, ...]]]:
        _, ids_BT = self._generate(images, prompt, options)
        written = self.processor.batch_decode(ids_BT, skip_special_tokens=True)
        return [self._parsed(text) for text in written]

    @torch.no_grad()
    def _generate(
        self, images: Sequence[Image.Image], prompt: str, options: TextOptions
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the inputs, and all tokens [B, T]."""
        torch.manual_seed(options.seed)
        inputs = self._inputs(images, prompt)
        ids_BT = self.network.generate(**inputs, image_embeds=None, **options.as_generation_config())
        return inputs, ids_BT

    def _parsed(self, text: str) -> tuple[str, tuple[PhraseBox, ...]]:
        """Return a caption without tags, and the boxes of its phrases, in fractions of what the model sees.

        A box without words is left out: transformers gives one that has no phrase the tags of its patches.
        """
        written = self.processor.post_process_generation(text, cleanup_and_extract=False)
        side = math.isqrt(self.processor.num_patch_index_tokens)
        plain, entities = clean_text_and_extract_entities_with_bboxes(written, side)
        named = [(phrase, boxes) for phrase, _, boxes in entities if any(map(str.isalnum, TAG.sub("", phrase)))]
        return plain, tuple(PhraseBox(phrase, *box) for phrase, boxes in named for box in boxes)
