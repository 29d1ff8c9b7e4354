"""BLIP-2 (Li et al. 2023, arXiv 2301.12597): an image encoder, a Q-Former of a few queries, and a language model."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import transformers
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.readers.attention import attention_in_numbers, mean_attention, seen_part, word_maps
from dreambooth.readers.likelihood import decoder_likelihood, end_likelihood, num_answer_tokens
from dreambooth.readers.loading import ReaderSource, load_network, load_part, moved
from dreambooth.readers.protocols import AttendedCaption, GroundedCaption
from dreambooth.readers.text_options import TextOptions

QUESTION = "Question: {question} Answer:"  # as the paper asks (section 4.1)


def shortened(text: str) -> str:
    """Return the beginning of a question for a message."""
    return text if len(text) <= 40 else f"{text[:37]}..."


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
        self._check_language(language)
        return self._write(images, None, options)

    def answer(self, images: Sequence[Image.Image], question: str, options: TextOptions) -> list[str]:
        return self._write(images, question, options)

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
        inputs = self._inputs(images, prompt + written)
        self._room(inputs, f"question {shortened(question)!r}")
        return end_likelihood(self.network, inputs, num)

    def _room(self, inputs: dict[str, torch.Tensor], asked: str, needed: int = 0) -> int | None:
        """Return how many tokens the language model can write behind its input; None for a T5, which has no limit.

        asked: the option of the text, with its value. Raises UserError where that leaves fewer than are needed.
        """
        config = self.network.config
        most: int | None = getattr(config.text_config, "max_position_embeddings", None)
        if config.is_encoder_decoder or most is None:
            return None
        given: int = inputs["input_ids"].shape[1]
        if most - given < needed:
            behind = f", and {needed} are to be written" if needed > 1 else ""
            raise UserError(
                f"{asked}: with the image it takes {given} of the {most} tokens that {self.name} reads and writes "
                f"together{behind}; ask for less"
            )
        return most - given

    def _inputs(self, images: Sequence[Image.Image], text: str) -> dict[str, torch.Tensor]:
        texts = [text] * len(images)
        inputs = self.processor(images=list(images), text=texts, padding=True, return_tensors="pt")
        return moved(inputs, self.network)

    @torch.no_grad()
    def attend(
        self, images: Sequence[Image.Image], options: TextOptions, language: str | None = None
    ) -> list[AttendedCaption]:
        if self.network.config.is_encoder_decoder:
            raise UserError(f"--attention: {self.name} writes by an encoder and a decoder; name a BLIP-2 with an OPT")
        self._check_language(language)
        inputs, ids_BT, begin = self._generate(images, None, options)
        text_BTT, image_BQP = self._attention(inputs, ids_BT)
        found = []
        for image, ids_T, text_TT, image_QP in zip(images, ids_BT.cpu(), text_BTT, image_BQP, strict=True):
            is_query_T = ids_T == self.network.config.image_token_index
            maps = word_maps(self.processor.tokenizer, ids_T[begin:], text_TT[begin - 1 : -1, is_query_T], image_QP)
            text = self.processor.decode(ids_T[begin:], skip_special_tokens=True).strip()
            found.append(AttendedCaption(text, maps, seen_part(self.processor.image_processor, image.size)))
        return found

    def _attention(self, inputs: dict[str, torch.Tensor], ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the language model's attention [B, T, T], and that of the queries to the patches, [B, Q, P]."""
        network, pixels_BCHW = self.network, inputs["pixel_values"]
        new_BT = torch.ones_like(ids_BT[:, inputs["attention_mask"].shape[1] :])
        mask_BT = torch.cat([inputs["attention_mask"], new_BT], dim=1)
        with attention_in_numbers(network):
            seen_BPD = network.vision_model(pixel_values=pixels_BCHW).last_hidden_state
            queries_BQD = network.query_tokens.expand(len(ids_BT), -1, -1)
            looked = network.qformer(query_embeds=queries_BQD, encoder_hidden_states=seen_BPD, output_attentions=True)
            wrote = network(
                pixel_values=pixels_BCHW, input_ids=ids_BT, attention_mask=mask_BT, output_attentions=True
            ).language_model_outputs
        return mean_attention(wrote.attentions), mean_attention(looked.cross_attentions)[:, :, 1:]  # no class token

    def _check_language(self, language: str | None) -> None:
        if language not in (None, "en"):
            raise UserError(f"--language {language}: {self.name} writes English alone; name another --model")

    def _write(self, images: Sequence[Image.Image], question: str | None, options: TextOptions) -> list[str]:
        _, ids_BT, begin = self._generate(images, question, options)
        written = self.processor.batch_decode(ids_BT[:, begin:], skip_special_tokens=True)
        return [text.strip() for text in written]

    @torch.no_grad()
    def _generate(
        self, images: Sequence[Image.Image], question: str | None, options: TextOptions
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
        """Return the inputs, all tokens [B, T], and the number of the first that is new."""
        torch.manual_seed(options.seed)
        inputs = self._inputs(images, "" if question is None else QUESTION.format(question=question))
        needed = max(1, options.min_tokens)
        asked = f"--min-tokens {needed}" if question is None else f"--question {shortened(question)!r}"
        room = self._room(inputs, asked, needed)
        if room is not None:
            options = replace(options, max_tokens=min(options.max_tokens, room))
        ids_BT = self.network.generate(**inputs, **options.as_generation_config())
        return inputs, ids_BT, 0 if self.network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
