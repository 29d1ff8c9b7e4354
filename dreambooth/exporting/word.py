"""A learned word as a file: alone, or beside a file that cannot hold it, having no tokenizer."""

from pathlib import Path

from dreambooth.exporting.metadata import file_metadata
from dreambooth.exporting.names import link_old_name, weights_file, word_files
from dreambooth.families import Family
from dreambooth.methods import find_facts, textual_inversion
from dreambooth.methods.textual_inversion import word_file
from dreambooth.subject_info import ExportCard, write_card


def write(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write one file for each word, and the subject's card."""
    write_files(family, card, folder, name)
    write_card(card, folder)


def write_beside(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write the words of a result that has any."""
    if find_facts(card.method).adds_tokens:
        write_files(family, card, folder, name)


def write_files(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write one file for each word: diffusers and AUTOMATIC1111 read it as it is, ComfyUI by the file's name.

    InvokeAI tells SD 1.x and 2.x apart by the first side of the tensor, so a single vector has one side alone; of
    several vectors it reads a file under a name of its own, which diffusers would take for the word.
    """
    words = [subject.identifier for subject in card.subjects]
    files = word_files(name, words)
    metadata = file_metadata(family, card, "diffusers", "textual-inversion")
    textual_inversion.save(family, folder, words, metadata, files, flat=True)
    for number, (word, file) in enumerate(zip(words, files, strict=True)):
        link_old_name(folder, file, word_file(number))
        if len(family.text_encoders) == 1 and len(family.tokenize(word)) > 1:
            path = folder / weights_file(f"{Path(file).stem}_invokeai")
            textual_inversion.save_vectors({"emb_params": textual_inversion.vectors(family, word)[0]}, path, metadata)
