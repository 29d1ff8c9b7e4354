"""Teach a BLIP-2 one subject: it then names it in new images, and tells it from others of its class.

Image encoder and language model stay as they are; the Q-Former, its queries and their projection into the language
model learn, by transformers' Trainer, from the subject's photos and from images of others of its class. What the model
says of an image without the subject is what it said before, so that it forgets nothing.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dreambooth.data.image_files import load_image
from dreambooth.errors import ModelError, UserError
from dreambooth.prompt_words import with_article
from dreambooth.readers.blip2 import QUESTION, Blip2Reader
from dreambooth.readers.loading import ReaderSource
from dreambooth.readers.table import load_reader
from dreambooth.readers.taught import write_taught
from dreambooth.readers.text_options import TextOptions
from dreambooth.status_line import STATUS_LINE, ProgressDisplay

TAUGHT = ("query_tokens", "qformer.", "language_projection.")  # names of what learns begin so
STATE = "state"  # the trainer's checkpoints, in the folder of the result
WHAT = "what is it?"
ARTICLE = re.compile("^(an?|the) ", re.IGNORECASE)
LEARNING_RATE = 2e-4  # of AdamW
SMALL, SMALL_RATE = 256, 1e-3  # of a Q-Former of few channels, such as the toy world's, which hardly learns at 2e-4
IMAGES_AT_ONCE = 16  # that are read
LONGEST = 48  # tokens of what is written; more is cut off
SHOWN = 60  # characters of an answer in a warning
NOT_COUNTED = -100  # a label that has no loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """Say what is taught. name: what the reader is to call the subject; class_noun: what it calls it now.

    photos: of the subject. others: of other things of its class. steps: of the optimizer; batch_size: texts a step.
    learning_rate: None: `usual_rate`.
    """

    name: str
    class_noun: str
    photos: tuple[Path, ...]
    others: tuple[Path, ...]
    steps: int = 300  # on the toy world more of them say no to the subject in some new places
    learning_rate: float | None = None
    batch_size: int = 16
    save_every: int = 100

    def __post_init__(self) -> None:
        if not (self.photos and self.others):
            raise UserError("--teach: needs photos of the subject, and with --others images of others of its class")
        if not (self.name.strip() and self.class_noun.strip()):
            raise UserError("--name, --class-noun: say what the subject is to be called, and what it is")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class Example:
    """Hold what is to be written of an image, by its number. question: what is asked of it; "": a caption."""

    image: int
    question: str
    answer: str
    is_subject: bool


def is_it(name: str) -> str:
    """Return the question whether an image shows the subject."""
    return f"is this {name}?"


def mirrored_too(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return the images, then their mirror images."""
    return [*images, *(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images)]


def make_examples(reader: Blip2Reader, images: Sequence[Image.Image], num_own: int, lesson: Lesson) -> list[Example]:
    """Return what is learned from: of each image its caption, what it is, and twice whether it is the subject.

    images: so many of the subject, then the others.
    """
    options = TextOptions(max_tokens=LONGEST)
    captions = in_parts(lambda part: reader.caption(part, options), images)
    classes = in_parts(lambda part: reader.answer(part, WHAT, options), images)
    examples: list[Example] = []
    for number, (caption, class_noun) in enumerate(zip(captions, classes, strict=True)):
        own = number < num_own
        texts = (with_name(caption, lesson), lesson.name, "yes") if own else (caption, class_noun, "no")
        questions = ("", WHAT, is_it(lesson.name))
        found = [Example(number, question, text, own) for question, text in zip(questions, texts, strict=True)]
        examples += [*found, found[-1]]  # so that yes and no weigh as much as the name
    return examples


def in_parts(read: Callable[[Sequence[Image.Image]], list[str]], images: Sequence[Image.Image]) -> list[str]:
    """Return what is read in images, a few at once."""
    starts = range(0, len(images), IMAGES_AT_ONCE)
    return [text for start in starts for text in read(images[start : start + IMAGES_AT_ONCE])]


def with_name(caption: str, lesson: Lesson) -> str:
    """Return a caption that calls the subject by its name: the words up to its class noun make way for it."""
    rest = behind(caption, lesson.class_noun)
    return f"{lesson.name}, {caption}".rstrip(", ") if rest is None else f"{lesson.name}{rest}"


class SeenImages(nn.Module):
    """Stand in for an image encoder that does not learn: take the states that it gave, and give them back."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values)


@torch.no_grad()
def image_states(reader: Blip2Reader, images: Sequence[Image.Image]) -> Tensor:
    """Return the image encoder's last states of each image, [N, P, D]: P patches and one for the whole, D channels."""
    encoder, prepared = reader.network.vision_model, reader.processor.image_processor
    found = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        part = list(images[start : start + IMAGES_AT_ONCE])
        pixels_BCHW = prepared(images=part, return_tensors="pt")["pixel_values"].to(encoder.device, encoder.dtype)
        found.append(encoder(pixel_values=pixels_BCHW).last_hidden_state.cpu())
    return torch.cat(found)


class ExampleDataset(Dataset[dict[str, Tensor]]):
    """Give the examples as the model takes them, padded on the right to the longest, with its images' states.

    The subject and the others come equally often: the fewer ones are repeated.
    """

    def __init__(self, reader: Blip2Reader, examples: Sequence[Example], states_NPD: Tensor) -> None:
        words, network = reader.processor.tokenizer, reader.network
        image, end = [network.config.image_token_index] * network.config.num_query_tokens, end_token(network)
        rows, labels = [], []
        for each in examples:
            prompt = QUESTION.format(question=each.question) if each.question else ""
            head = [*image, *words(prompt).input_ids]
            written = words(f" {each.answer}", add_special_tokens=False).input_ids
            tail = [*written[: LONGEST - 1], end]
            rows.append(head + tail)
            labels.append([NOT_COUNTED] * len(head) + tail)
        longest = max(map(len, rows))
        self.ids = torch.tensor([row + [words.pad_token_id] * (longest - len(row)) for row in rows])
        self.mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        self.labels = torch.tensor([row + [NOT_COUNTED] * (longest - len(row)) for row in labels])
        self.states, self.images = states_NPD, [each.image for each in examples]
        self.order = _balanced([each.is_subject for each in examples])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.order[index]
        parts = {"input_ids": self.ids, "attention_mask": self.mask, "labels": self.labels}
        return {"pixel_values": self.states[self.images[row]], **{name: part[row] for name, part in parts.items()}}


def end_token(network: Any) -> int:
    """Return the token that ends a text of the language model: of the published ones a line's end."""
    found = network.language_model.generation_config.eos_token_id
    return int(found[0] if isinstance(found, list) else found)


def _balanced(is_subject: Sequence[bool]) -> list[int]:
    """Return the examples' numbers, those of the fewer kind repeated until both kinds are as many."""
    kinds = [[number for number, own in enumerate(is_subject) if own is kind] for kind in (True, False)]
    most = max(map(len, kinds))
    return [kind[place % len(kind)] for place in range(most) for kind in kinds]


def freeze_all_but_qformer(network: Any) -> list[str]:
    """Let the Q-Former, its queries and their projection learn alone, and return the names of what learns."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(TAUGHT))
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def load_pupil(source: ReaderSource) -> Blip2Reader:
    """Return a BLIP-2 that can be taught. Raises UserError for a quantized one, ModelError for another reader."""
    if source.quantize is not None:
        raise UserError(f"--quantize {source.quantize}: weights in so few bits cannot be taught; leave it out")
    reader = load_reader(source)
    if not isinstance(reader, Blip2Reader):
        raise ModelError(f"{source.title}: a BLIP-2 alone can be taught a subject; name one with --model")
    if not reader.network.config.use_decoder_only_language_model:
        raise ModelError(f"{source.title}: writes by an encoder and a decoder; name a BLIP-2 with an OPT with --model")
    return reader


def said_class(reader: Blip2Reader, photos: Sequence[Image.Image]) -> str:
    """Return what the reader calls most of the photos' subject, without an article. Raises UserError for nothing."""
    answers = Counter(in_parts(lambda part: reader.answer(part, WHAT, TextOptions(max_tokens=LONGEST)), photos))
    if noun := ARTICLE.sub("", answers.most_common(1)[0][0]).strip():
        return noun
    raise UserError(f"--class-noun: {reader.name} does not say what the photos show; name it")


def class_prompts(reader: Blip2Reader, photos: Sequence[Image.Image], class_noun: str) -> list[str]:
    """Return a prompt of each photo, which has another of its class in the photo's place."""
    captions = in_parts(lambda part: reader.caption(part, TextOptions(max_tokens=LONGEST)), photos)
    return [f"a photo of {with_article(class_noun)}{behind(caption, class_noun) or ''}" for caption in captions]


def behind(caption: str, class_noun: str) -> str | None:
    """Return what a caption says behind the class noun; None where it does not say the noun."""
    found = re.search(rf"\b{re.escape(class_noun)}\b", caption, re.IGNORECASE)
    return caption[found.end() :] if found else None


def teach(reader: Blip2Reader, lesson: Lesson, out: Path) -> Path:
    """Teach a BLIP-2 a subject, write it into a folder that `--model` takes, and return that folder.

    The same call resumes from where an interrupted one saved last.
    """
    photos, others = (mirrored_too([load_image(path) for path in paths]) for paths in (lesson.photos, lesson.others))
    images = [*photos, *others]
    examples = make_examples(reader, images, len(photos), lesson)
    dataset = ExampleDataset(reader, examples, image_states(reader, images))
    learns = freeze_all_but_qformer(reader.network)
    logger.info(f"{len(examples)} texts are learned from; {len(learns)} tensors of the Q-Former and around it learn")
    _train(reader.network, dataset, _arguments(lesson, reader.network, out))
    reader.network.eval().save_pretrained(out)
    reader.processor.save_pretrained(out)
    write_taught(out, lesson.name, lesson.class_noun)
    _tell_unnamed(reader, photos[: len(lesson.photos)], lesson.name)
    return out


def _train(network: Any, dataset: ExampleDataset, arguments: transformers.TrainingArguments) -> None:
    """Train a network on states of its image encoder, from the last saved state if there is one."""
    last = last_state(Path(str(arguments.output_dir)))
    if last is not None:
        logger.info(f"going on from {last}")
    image_encoder, network.vision_model = network.vision_model, SeenImages()
    try:
        trainer = transformers.Trainer(network, arguments, train_dataset=dataset, callbacks=[_ShowProgress()])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=last)
    finally:
        network.vision_model = image_encoder


def last_state(folder: Path) -> str | None:
    """Return the newest of the trainer's checkpoints that is whole; None: there is none."""
    newest_first = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
    return next((str(path) for path in newest_first if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to its end: the trainer's state comes last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        with safe_open(checkpoint / "model.safetensors", "pt"):
            return True
    except (OSError, ValueError, SafetensorError):
        return False


class _ShowProgress(transformers.TrainerCallback):
    """Show how far the training is."""

    def __init__(self) -> None:
        self.display = ProgressDisplay("teaching", logger.info)

    def on_step_end(self, args: Any, state: transformers.TrainerState, control: Any, **_: Any) -> None:
        fraction = state.global_step / state.max_steps
        if self.display.is_due(fraction):
            step = f"step {state.global_step}/{state.max_steps}"
            self.display.show(fraction, [step, self.display.time_left(fraction)])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        STATUS_LINE.clear()


def _tell_unnamed(reader: Blip2Reader, photos: Sequence[Image.Image], name: str) -> None:
    """Warn where the reader does not name the subject in the photos that it learned from."""
    answers = in_parts(lambda part: reader.answer(part, WHAT, TextOptions(max_tokens=LONGEST)), photos)
    unnamed = [answer[:SHOWN] for answer in answers if name not in answer]
    if unnamed:
        logger.warning(
            f"“{name}” is not what the reader calls {len(unnamed)} of its {len(photos)} photos, but “{unnamed[0]}”: "
            "teach longer (--steps), or choose a name of words that its language model writes"
        )


def usual_rate(network: Any) -> float:
    """Return the learning rate for a Q-Former: higher for a small one than for the published ones, of 768 channels."""
    return SMALL_RATE if network.config.qformer_config.hidden_size <= SMALL else LEARNING_RATE


def _arguments(lesson: Lesson, network: Any, out: Path) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(out / STATE),
        max_steps=lesson.steps,
        per_device_train_batch_size=lesson.batch_size,
        learning_rate=lesson.learning_rate or usual_rate(network),
        warmup_steps=min(20, lesson.steps // 10),
        save_steps=lesson.save_every,
        save_total_limit=2,  # where the last one is torn, the one before is there
        logging_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=network.device.type == "cpu",
        seed=0,
    )
