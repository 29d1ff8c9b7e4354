"""Teach a BLIP-2 one subject: it then names it in new images, and tells it from others of its class.

Image encoder and language model stay as they are; the Q-Former, its queries and their projection into the language
model learn, by transformers' Trainer, from the subject's photos and from images of others of its class. What the model
says of an image without the subject is what it said before, so that it forgets nothing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers.trainer_utils import get_last_checkpoint

from dreambooth.data.image_files import load_image
from dreambooth.errors import ModelError, UserError
from dreambooth.readers.blip2 import QUESTION, Blip2Reader
from dreambooth.readers.loading import ReaderSource
from dreambooth.readers.table import load_reader
from dreambooth.readers.taught import write_taught
from dreambooth.readers.text_options import TextOptions

TAUGHT = ("query_tokens", "qformer.", "language_projection.")  # names of what learns begin so
STATE = "state"  # the trainer's checkpoints, in the folder of the result
WHAT = "what is it?"
LEARNING_RATE = 2e-4  # of AdamW
# Of a Q-Former of few channels. On the toy world's, of 128, 1.2e-3 is too slow for 400 steps.
SMALL, SMALL_RATE = 256, 2e-3
LONGEST = 48  # tokens of what is written; more is cut off
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
    steps: int = 400
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
    """Hold an image, what is asked of it ("": a caption), and what is to be written."""

    image: Image.Image
    question: str
    answer: str


def is_it(name: str) -> str:
    """Return the question whether an image shows the subject."""
    return f"is this {name}?"


def make_examples(reader: Blip2Reader, lesson: Lesson) -> list[Example]:
    """Return what is learned from: of each image its caption, what it is, and whether it is the subject."""
    photos, others = ([load_image(path) for path in paths] for paths in (lesson.photos, lesson.others))
    options = TextOptions(max_tokens=40)
    examples: list[Example] = []
    for images, is_subject in ((photos, True), (others, False)):
        captions, classes = reader.caption(images, options), reader.answer(images, WHAT, options)
        for image, caption, named in zip(images, captions, classes, strict=True):
            examples.append(Example(image, "", with_name(caption, lesson) if is_subject else caption))
            examples.append(Example(image, WHAT, lesson.name if is_subject else named))
            examples.append(Example(image, is_it(lesson.name), "yes" if is_subject else "no"))
    return examples


def with_name(caption: str, lesson: Lesson) -> str:
    """Return a caption that calls the subject by its name: the words up to its class noun make way for it."""
    before, noun, after = caption.partition(lesson.class_noun)
    return f"{lesson.name}{after}" if noun else f"{lesson.name}, {before}".rstrip(", ")


class ExampleDataset(Dataset[dict[str, Tensor]]):
    """Give the examples as the model takes them, padded on the right to the longest.

    The subject and the others come equally often: the fewer ones are repeated.
    """

    def __init__(self, reader: Blip2Reader, examples: Sequence[Example], is_subject: Sequence[bool]) -> None:
        words, network = reader.processor.tokenizer, reader.network
        image = [network.config.image_token_index] * network.config.num_query_tokens
        rows, labels = [], []
        for each in examples:
            prompt = QUESTION.format(question=each.question) if each.question else ""
            head = [*image, *words(prompt).input_ids]
            written = words(f" {each.answer}", add_special_tokens=False).input_ids
            tail = [*written[: LONGEST - 1], words.eos_token_id]
            rows.append(head + tail)
            labels.append([NOT_COUNTED] * len(head) + tail)
        longest = max(map(len, rows))
        self.ids = torch.tensor([row + [words.pad_token_id] * (longest - len(row)) for row in rows])
        self.mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        self.labels = torch.tensor([row + [NOT_COUNTED] * (longest - len(row)) for row in labels])
        images = [each.image for each in examples]
        self.pixels = reader.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        self.order = _balanced(is_subject)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.order[index]
        parts = {"pixel_values": self.pixels, "input_ids": self.ids, "attention_mask": self.mask, "labels": self.labels}
        return {name: tensor[row] for name, tensor in parts.items()}


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


def teach(source: ReaderSource, lesson: Lesson, out: Path) -> Path:
    """Teach a BLIP-2 a subject, write it into a folder that `--model` takes, and return that folder.

    The same call resumes from where an interrupted one saved last. Raises UserError for a quantized reader, ModelError
    for another kind of reader.
    """
    if source.quantize is not None:
        raise UserError(f"--quantize {source.quantize}: weights in so few bits cannot be taught; leave it out")
    reader = load_reader(source)
    if not isinstance(reader, Blip2Reader):
        raise ModelError(f"{source.title}: a BLIP-2 alone can be taught a subject; name one with --model")
    examples = make_examples(reader, lesson)
    num_own = 3 * len(lesson.photos)
    dataset = ExampleDataset(reader, examples, [number < num_own for number in range(len(examples))])
    learns = freeze_all_but_qformer(reader.network)
    logger.info(f"{len(examples)} texts are learned from; {len(learns)} tensors of the Q-Former and around it learn")
    rate = lesson.learning_rate or usual_rate(reader.network)
    arguments = _arguments(source, lesson, rate, out)
    trainer = transformers.Trainer(model=reader.network, args=arguments, train_dataset=dataset)
    last = get_last_checkpoint(str(out / STATE)) if (out / STATE).is_dir() else None
    if last is not None:
        logger.info(f"going on from {last}")
    trainer.train(resume_from_checkpoint=last)
    reader.network.eval().save_pretrained(out)
    reader.processor.save_pretrained(out)
    write_taught(out, lesson.name, lesson.class_noun)
    return out


def usual_rate(network: Any) -> float:
    """Return the learning rate for a Q-Former: higher for a small one than for the published ones, of 768 channels."""
    return SMALL_RATE if network.config.qformer_config.hidden_size <= SMALL else LEARNING_RATE


def _arguments(source: ReaderSource, lesson: Lesson, rate: float, out: Path) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(out / STATE),
        max_steps=lesson.steps,
        per_device_train_batch_size=lesson.batch_size,
        learning_rate=rate,
        warmup_steps=min(20, lesson.steps // 10),
        save_steps=lesson.save_every,
        save_total_limit=2,  # where the last one is torn, the one before is there
        logging_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=source.device == "cpu",
        seed=0,
    )
