"""Captions of photos: what is wrong with those that the user wrote, and proposals.

A caption should have {subject}, should not say what the subject looks like, which its identifier is to learn, and
should say where it is. The words are in `caption_rules` and `looks`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from PIL import Image

from dreambooth.data.captions import MissingCaptionError, read_captions, read_metadata
from dreambooth.data.image_folder import ImageFolder
from dreambooth.errors import UserError, escaped
from dreambooth.prepare import caption_rules as rules
from dreambooth.prepare.findings import Finding
from dreambooth.prompt_words import find_words
from dreambooth.prompts import template_problem

SUBJECT = "{subject}"
WORD = re.compile(r"\{\w+\}|[^\W\d_]+(?:-[^\W\d_]+)*|\d+|[^\w\s]+")
ARTICLE = re.compile(r"\b(?:an?|the|my|our|one)\s+(?=\{subject\})", re.IGNORECASE)  # identifiers stand without one
OPENING = re.compile(  # before what an image is of
    r"(?:(?:an?|the|this)\s+)?(?:close-?up\s+)?(?:(?:photo|picture|image|close-?up)\s+(?:of|is|shows)\s+)?", re.I
)
MIN_WORDS = 2  # beside the subject's: "a photo of {subject}" says nothing of the place
EMPTY_WORDS = frozenset(["a", "an", "the", "photo", "picture", "image", "of", "one", "this", "my"])
Span = tuple[int, int]


class Captioner(Protocol):
    """Describe a photo in words: a model, or a program's own captions."""

    def __call__(self, image: Image.Image, class_noun: str) -> str:
        """Return what is seen in the photo, in a sentence that names the class."""
        ...


@dataclass(frozen=True)
class Caption:
    """Hold a caption as it is, its findings, and what to write instead. leaks: of words that say the subject's looks.

    text: "" where a photo has none. proposed: None where the caption is fine.
    """

    path: Path
    text: str
    findings: list[Finding]
    leaks: tuple[Span, ...] = ()
    proposed: str | None = None

    @property
    def is_broken(self) -> bool:
        """Return whether training refuses it, or the file that it should be read from."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def file(self) -> Path:
        """Return the file beside the photo that a proposal is written to where nothing is there."""
        return self.path.with_suffix(".txt")

    @property
    def is_free(self) -> bool:
        """Return whether a proposal may be written beside the photo: nothing is there that it would replace."""
        return not self.text and not self.file.exists()

    @property
    def lies_beside(self) -> bool:
        """Return whether training will find a caption of the photo once the proposals are written."""
        return bool(self.text) or (self.proposed is not None and self.is_free)


def captions_of_folder(folder: ImageFolder, class_noun: str, identifier: str | None) -> list[Caption]:
    """Return each photo's caption with its findings; none where no photo has one, and no file of them is broken."""
    if not folder.captions:
        return []
    found = []
    for path in folder.images:
        try:
            (text,) = read_captions([path], folder.captions)
        except MissingCaptionError:
            advice = "write one, or take the others away: data.captions needs all"
            found.append(Caption(path, "", [Finding("no caption", "warning", 0, "has no caption", advice)]))
            continue
        except UserError as error:
            advice = "mend the file: training refuses it"
            found.append(Caption(path, "", [Finding("caption", "error", 1, str(error), advice)]))
            continue
        found.append(lint(path, text, class_noun, identifier))
    is_any = any(caption.text or caption.is_broken for caption in found)
    return found if is_any else []


def edited_captions(folder: ImageFolder, file: Path, class_noun: str, identifier: str | None) -> list[Caption]:
    """Return the captions of a folder with those of a file in their place, as the page has saved them.

    Each is proposed as it stands, with its findings. Raises UserError for a line that is no caption of a photo here.
    """
    texts = {name: " ".join(text.split()) for name, text in read_metadata(file).items()}
    photos = {path.name: path for path in folder.images}
    found = {caption.path: caption for caption in captions_of_folder(folder, class_noun, identifier)}
    for name, text in texts.items():
        problem = template_problem(text) if name in photos else f"there is no such photo in {escaped(folder.path)}"
        if problem or not text:
            raise UserError(f"--captions {escaped(file)}: {escaped(name)}: {problem or 'the caption is empty'}")
        path = photos[name]
        own = found[path].text if path in found else ""
        linted = lint(path, text, class_noun, identifier)
        is_own = text == own
        leaks = linted.leaks if is_own else ()
        found[path] = Caption(path, own, linted.findings, leaks, None if is_own else text)
    return [found[path] for path in folder.images if path in found]


def lint(path: Path, text: str, class_noun: str, identifier: str | None = None) -> Caption:
    """Return a caption with what is wrong with it and what to write instead."""
    named = with_subject(text, class_noun, identifier)
    findings, leaks = [], find_leaks(text, class_noun, identifier)
    problem = template_problem(text)
    proposed = None if problem else without_leaks(named, class_noun)
    if problem:
        findings.append(Finding("caption", "error", 1, f"{text!r}: {problem}", "mend it: training refuses it"))
    elif SUBJECT not in text and (identifier is None or not find_words(text, identifier)):
        advice = f"write {proposed!r}" + (", or name your word with --identifier" if identifier is None else "")
        findings.append(Finding("no subject", "error", 0, f"{text!r} has no {SUBJECT}", advice))
    elif class_noun and (again := _class_again(class_noun).findall(text)):
        advice = f"leave {class_noun!r} out: {SUBJECT} stands for it too"
        findings.append(Finding("class twice", "warning", len(again), f"{text!r} says the class twice", advice))
    if leaks:
        words = ", ".join(repr(text[start:end]) for start, end in leaks)
        advice = f"leave out what {SUBJECT} is to learn"
        findings.append(Finding("leak", "warning", len(leaks), f"says what the subject looks like: {words}", advice))
    if proposed is not None and says_nothing(proposed, class_noun):
        advice = "add where it is, how it stands and in which light: what is not named is learned with the subject"
        findings.append(Finding("bare", "note", 0, f"{proposed!r} names no place, pose or light", advice))
    needs_another = any(one.kind in ("no subject", "class twice", "leak") for one in findings)
    return Caption(path, text, findings, tuple(leaks), proposed if needs_another else None)


def propose(description: str, class_noun: str) -> str:
    """Return a caption from a captioner's description: {subject} for the words that name it, its looks left out."""
    text = re.sub(r"^there (?:is|are)\s+", "", description.strip().rstrip("."), flags=re.IGNORECASE)
    start, end = _named_thing(text, class_noun)
    named = f"{text[:start]}{SUBJECT}{' ' * (start == end)}{text[end:]}"
    return ARTICLE.sub("", without_leaks(named, class_noun)).strip()


def _named_thing(text: str, class_noun: str) -> Span:
    """Return where a description names the subject: from its article to the class noun.

    Where the class noun is missing ("a golden retriever on grass" for a dog) it is what the description begins with.
    """
    nouns = find_words(text, class_noun) if class_noun else []
    if not nouns:
        opening = OPENING.match(text)
        first = opening.end() if opening else 0
        words = [*WORD.finditer(text, first)]
        named = [*_until_place([word[0].lower() for word in words], rules.LINKS | {"that", "which", "who"})]
        return (first, words[len(named) - 1].end()) if named else (first, first)
    start, end = nouns[0]
    for word in reversed([*WORD.finditer(text, 0, start)]):
        lower = word[0].lower()
        if lower in rules.ARTICLES:
            return word.start(), end
        if lower == "of" or lower in rules.PLACES | rules.LINKS or rules.is_break(lower):
            break
    return start, end


def with_subject(text: str, class_noun: str, identifier: str | None) -> str:
    """Return a caption with {subject} in the place of the identifier or the class noun; in front where there is none.

    "a photo of my brown dog asleep" becomes "a photo of {subject} asleep" by way of `without_leaks`.
    """
    if SUBJECT in text:
        return text if not class_noun else _class_again(class_noun).sub(SUBJECT, text)
    for name in (f"{identifier} {class_noun}" if identifier else "", identifier or "", class_noun):
        spans = find_words(text, name) if name else []
        if spans:
            start, end = spans[0]
            return text[:start] + SUBJECT + text[end:]
    return f"a photo of {SUBJECT}, {text}" if text else f"a photo of {SUBJECT}"


def _class_again(class_noun: str) -> re.Pattern[str]:
    """Return what finds a class noun right behind {subject}, which is written out with one."""
    return re.compile(rf"{re.escape(SUBJECT)}\s+{re.escape(class_noun)}\b", re.IGNORECASE)


def find_leaks(text: str, class_noun: str, identifier: str | None = None) -> list[Span]:
    """Return where a caption says what the subject looks like.

    A word of looks leaks before the subject ("a red {subject}"), in a part of its own ("{subject}, fluffy, on grass"),
    with a mark of the subject ("brown ears") and after a link to it ("{subject} is white"); not with another thing ("on
    a red sofa", "wearing a red hat").
    """
    words = [*WORD.finditer(text)]
    subjects = [SUBJECT, "{class}", *(name for name in (identifier, class_noun) if name)]
    spans = [span for name in subjects for span in _spans_of(text, name)]
    is_subject = [any(start <= word.start() < end for start, end in spans) for word in words]
    leaks = {*_before(words, is_subject), *_after(words, is_subject), *_own_parts(words, is_subject)}
    return [words[number].span() for number in sorted(leaks)]


def _spans_of(text: str, name: str) -> list[Span]:
    if name.startswith("{"):
        return [match.span() for match in re.finditer(re.escape(name), text)]
    return find_words(text, name)


def _before(words: Sequence[re.Match[str]], is_subject: Sequence[bool]) -> Iterator[int]:
    """Yield the words of looks right before a subject."""
    for number, own in enumerate(is_subject):
        place = number - 1
        while own and place >= 0 and not is_subject[place]:
            word = words[place][0].lower()
            if rules.says_looks(word):
                yield place
            elif word not in rules.JOINING or word in ("a", "an", "the", "with"):
                break
            place -= 1


def _after(words: Sequence[re.Match[str]], is_subject: Sequence[bool]) -> Iterator[int]:
    """Yield the words of looks that a link joins to a subject: "is white", "with brown ears"."""
    for number, own in enumerate(is_subject):
        rest = [word[0].lower() for word in words[number + 1 :]]
        if not own or not rest:
            continue
        if skipped := _num_linking(rest):
            phrase = [*_until_place(rest[skipped:])]
            behind = rest[skipped + len(phrase) :][:2]
            first = number + 1 + skipped
            if behind in (["on", "it"], ["on", "them"]):
                yield from (first + offset for offset, word in enumerate(phrase) if word not in rules.JOINING)
            elif not any(rules.is_mark(word) and state in rules.STATES for word, state in pairwise(phrase + behind)):
                says_what_it_is = rest[skipped - 1] not in rules.HAVING
                yield from (first + offset for offset in _looks_in(phrase, says_what_it_is))


def _num_linking(words: Sequence[str]) -> int:
    """Return how many words lead from a subject to its looks: "with", "that is", "is made of"; 0 where none do."""
    first = count = 1 if words[0] in ("that", "which", "who") else 0
    while count < len(words) and (words[count] in rules.LINKS or words[count - 1 : count + 1] == ["made", "of"]):
        count += 1
    return count if count > first else 0


def _looks_in(phrase: Sequence[str], says_what_it_is: bool) -> Iterator[int]:
    """Yield the words that say looks in what is linked to a subject; with marks also what is said of these."""
    last_mark = max((offset for offset, word in enumerate(phrase) if rules.is_mark(word)), default=-1)
    is_looks = says_what_it_is and all(rules.says_looks(word) or word in rules.JOINING for word in phrase)
    for offset, word in enumerate(phrase):
        if word not in rules.JOINING and (offset <= last_mark or is_looks):
            yield offset


def _until_place(words: Sequence[str], ends: Collection[str] = ()) -> Iterator[str]:
    """Yield the words up to a place, a new part, what the subject does, or one of `ends`."""
    for word in words:
        does = word.endswith("ing") and not rules.is_mark(word)
        if does or word in rules.PLACES or word in ends or rules.is_break(word):
            return
        yield word


def _own_parts(words: Sequence[re.Match[str]], is_subject: Sequence[bool]) -> Iterator[int]:
    """Yield the words of parts between commas that hold nothing but looks and marks: "brown ears, fluffy"."""
    part: list[int] = []
    for number in range(len(words) + 1):
        if number < len(words) and not rules.is_break(words[number][0]):
            part.append(number)
            continue
        texts = [words[each][0].lower() for each in part]
        is_own = all(rules.says_looks(word) or rules.is_mark(word) or word in rules.JOINING for word in texts)
        is_light = texts[-1:] == ["light"] or rules.SHADES.issuperset(texts)
        if is_own and not is_light and not any(is_subject[each] for each in part):
            yield from (each for each in part if words[each][0].lower() not in rules.JOINING)
        part = []


def without_leaks(text: str, class_noun: str) -> str:
    """Return a caption without the words that say what the subject looks like."""
    leaks = find_leaks(text, class_noun)
    kept = text
    for start, end in reversed(leaks):
        kept = kept[:start] + "\0" + kept[end:]
    if not leaks:
        return text
    gone = r"\0(?:\s*(?:,|and|or|very|a|an|the|-)?\s*\0)*"
    links = "|".join([*sorted(rules.LINKS), "that", "which", "who", "made of"])
    kept = re.sub(rf"(?:\s+(?:{links}))+\s+(?:(?:a|an|the|very)\s+)?{gone}(?:\s+on (?:it|them)\b)?", "", kept)
    kept = re.sub(rf"{gone}\s*", "", kept)
    kept = re.sub(r"\s*(?:\(\s*\)|\[\s*\])", "", kept)  # brackets that held nothing else
    kept = re.sub(r"\s*([,–—]|\s-)(?:\s*(?:and\s*)?(?:,|[-–—](?=\s|$)))+", r"\1", kept)
    kept = ARTICLE.sub("", kept)
    return re.sub(r"\s+", " ", kept).strip(" ,-–—")


def says_nothing(text: str, class_noun: str) -> bool:
    """Return whether a caption names nothing beside the subject."""
    words = [word[0].lower() for word in WORD.finditer(text)]
    own = {SUBJECT, *class_noun.lower().split(), *EMPTY_WORDS}
    return sum(word not in own and not rules.is_break(word) for word in words) < MIN_WORDS
