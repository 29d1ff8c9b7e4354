"""BLIP-2 (Li et al. 2023, arXiv 2301.12597): an image encoder, a Q-Former of a few queries, and a language model."""

from collections.abc import Sequence

import torch
import transformers
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.readers.likelihood import decoder_likelihood, end_likelihood, num_answer_tokens
from dreambooth.readers.loading import ReaderSource, load_network, load_part, moved
from dreambooth.readers.protocols import GroundedCaption
from dreambooth.readers.text_options import TextOptions

QUESTION = "Question: {question} Answer:"  # as the paper asks (section 4.1)


class Blip2Reader:
    """Describe and answer by Blip2ForConditionalGeneration."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network = load_network(source, transformers.Blip2ForConditionalGeneration)
        self.processor = load_part(source.name, transformers.AutoProcessor)
        if self.processor.num_query_tokens is None:  # early files leave it out
            self.processor.num_query_tokens = self.network.config.num_query_tokens
        self.processor.tokenizer.padding_side = "left"

    def caption(self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None) -> list[str]:
        if language not in (None, "en"):
            raise UserError(f"--language {language}: {self.name} writes English alone; name another --model")
        return self._write(images, None, options)

    def answer(self, images: Sequence[Image.Image], question: str, options: TextOptions) -> list[str]:
        return self._write(images, QUESTION.format(question=question), options)

    def ground(
        self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None
    ) -> list[GroundedCaption]:
        raise UserError(f"--ground: {self.name} is a BLIP-2, which tells no boxes; name a Kosmos-2 with --model")

    def likelihood(self, images: Sequence[Image.Image], question: str, answer: str) -> list[float]:
        prompt, words, written = QUESTION.format(question=question), self.processor.tokenizer, f" {answer}"
        if self.network.config.is_encoder_decoder:
            ids_1T = words([answer], add_special_tokens=False, return_tensors="pt").input_ids
            ids_BT = ids_1T.expand(len(images), -1).to(self.network.device)
            return decoder_likelihood(self.network, self._inputs(images, prompt), ids_BT)
        num = num_answer_tokens(words, prompt, written)
        return end_likelihood(self.network, self._inputs(images, prompt + written), num)

    def _inputs(self, images: Sequence[Image.Image], text: str) -> dict[str, torch.Tensor]:
        texts = [text] * len(images)
        inputs = self.processor(images=list(images), text=texts, padding=True, return_tensors="pt")
        return moved(inputs, self.network)

    @torch.no_grad()
    def _write(self, images: Sequence[Image.Image], prompt: str | None, options: TextOptions) -> list[str]:
        torch.manual_seed(options.seed)
        inputs = self._inputs(images, prompt or "")
        ids_BT = self.network.generate(**inputs, **options.as_generation_config())
        begin = 0 if self.network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        new_BT = ids_BT[:, begin:]
        return [text.strip() for text in self.processor.batch_decode(new_BT, skip_special_tokens=True)]
