"""How often `prepare` is right about photos: faults are planted, and each finding counted where it is and is not due.

    python benchmarks/photo_findings.py [--photographs FOLDER] [--only text|candidates|class] [--reader FOLDER]

Photos are of the toy world, rendered here, and photographs of a folder with a folder for each subject. Prints a table:
recall (of planted faults, how many are found), false alarms (of sound photos, how many are said to have it) and
precision (of what is found, how much is a fault, with as many sound photos as planted faults).
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps
from scipy import ndimage

from dreambooth.data.buckets import make_buckets
from dreambooth.data.image_files import load_image
from dreambooth.prepare.findings import Needs
from dreambooth.prepare.inspection import NO_READERS, PhotoReaders, inspect_folder
from dreambooth.prepare.measures import reduced
from dreambooth.readers.lettering import TextReader, is_available
from dreambooth.readers.one_photo import PhotoDescriber, SubjectFinder
from dreambooth.readers.usual import DESCRIBE, MASK
from toyworld import world
from toyworld.photos import PLACES, photos
from toyworld.second import picture

# Photographs of the six subjects that have a fault as they come, found by eye.
KNOWN = {"cat2/00.jpg": "bars", "cat2/01.jpg": "bars", "cat2/04.jpg": "bars", "dog6": "background"}
Images = dict[str, Image.Image]
PHOTOGRAPH_SIDE = 640  # pixels, to which photographs are reduced
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Oblique", "STIXGeneral", "cmr10")
WORDS = ("SALE 50%", "www.photos.com", "Jane Doe", "Holiday 2024", "SAMPLE", "stock image", "Grand Opening", "Berlin")
SHORT_WORDS = ("SALE", "Berlin", "2024", "Lisa", "photo", "DEMO")
COLOURS = ("white", "black", "yellow", "red", "navy")


@dataclass
class Counts:
    """Count photos with and without a fault, and those of each that are said to have it."""

    planted: int = 0
    found: int = 0
    sound: int = 0
    alarms: int = 0

    def add(self, is_fault: bool, is_found: bool) -> None:
        self.planted += is_fault
        self.found += is_fault and is_found
        self.sound += not is_fault
        self.alarms += not is_fault and is_found

    @property
    def row(self) -> str:
        recall = self.found / max(1, self.planted)
        alarm_rate = self.alarms / max(1, self.sound)
        precision = recall / max(1e-9, recall + alarm_rate)
        return f"{self.found} of {self.planted} | {self.alarms} of {self.sound} | {precision:.2f}"


@dataclass
class Bench:
    """Look at folders, and count. side: of the photos of a source, pixels."""

    source: str
    resolution: int
    counts: dict[str, Counts] = field(default_factory=dict)
    alarms: dict[str, list[str]] = field(default_factory=dict)
    readers: PhotoReaders = NO_READERS

    def look(
        self, images: Images, masks: Images | None = None, class_noun: str = "thing"
    ) -> tuple[dict[str, set[str]], set[str]]:
        """Return the kinds of findings of each photo, and of the folder."""
        buckets = make_buckets(self.resolution, self.resolution // 8)
        with tempfile.TemporaryDirectory() as folder:
            for name, files in (("photos", images), ("photos-masks", masks or {})):
                for file, image in files.items():
                    path = Path(folder, name, file)
                    path.parent.mkdir(exist_ok=True)
                    image.save(path, quality=92, compress_level=1)
            found = inspect_folder(
                Path(folder, "photos"), Needs(self.resolution, buckets), class_noun, readers=self.readers
            )
        by_photo = {each.path.name: {finding.kind for finding in each.findings} for each in found.photos}
        for finding in found.findings:
            for name in finding.photos if finding.kind == "duplicate" else ():
                by_photo[name].add(finding.kind)
        return by_photo, {finding.kind for finding in found.findings}

    def count(self, kind: str, name: str, is_fault: bool, kinds: Iterable[str]) -> None:
        self.counts.setdefault(kind, Counts()).add(is_fault, kind in kinds)
        if not is_fault and kind in kinds:
            self.alarms.setdefault(kind, []).append(name)


def blurred(rng: random.Random, image: Image.Image) -> Image.Image:
    """Blur by 2.5 of 512 pixels and more, out of focus or in motion."""
    unit = max(1.0, max(image.size) / 512)
    weight = 1.0 if max(image.size) > 64 else 0.4
    if rng.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(2.5, 5) * unit * weight))
    length = max(3, round(rng.uniform(14, 28) * unit * weight**1.4))
    return Image.fromarray(ndimage.uniform_filter1d(np.asarray(image, np.float32), length, axis=1).astype(np.uint8))


def exposed(image: Image.Image, stops: float) -> Image.Image:
    """Return a photo taken with 2^stops times the light."""
    linear = (np.asarray(image, np.float32) / 255) ** 2.2 * 2**stops
    return Image.fromarray((np.clip(linear, 0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8))


def barred(rng: random.Random, image: Image.Image) -> Image.Image:
    """Put bars of one colour above and below, or left and right."""
    share, colour = rng.uniform(0.05, 0.25), rng.choice(["black", "white", (24, 26, 30)])
    width, height = image.size
    more = (round(share * width), 0) if rng.random() < 0.5 else (0, round(share * height))
    canvas = Image.new("RGB", (width + 2 * more[0], height + 2 * more[1]), colour)
    canvas.paste(image, more)
    return canvas


def elongated(rng: random.Random, image: Image.Image) -> Image.Image:
    """Cut a strip out of a photo, 4.5 to 8 times as long as wide."""
    width, height = image.size
    strip = max(17, round(width / rng.uniform(4.5, 8)))
    top = rng.randrange(height - strip)
    return image.resize((width * 2, height * 2)).crop((0, 2 * top, width * 2, 2 * top + 2 * strip))


def cut_out(rng: random.Random, image: Image.Image) -> Image.Image:
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, image.width // 3, image.height))
    result = image.convert("RGBA")
    result.putalpha(alpha)
    return result


def shrunk(rng: random.Random, image: Image.Image) -> Image.Image:
    return image.resize([max(17, round(side * rng.uniform(0.3, 0.45))) for side in image.size])


PLANTED: dict[str, Callable[[random.Random, Image.Image], Image.Image]] = {
    "blurred": blurred,
    "dark": lambda rng, image: exposed(image, rng.uniform(-5, -3)),
    "clipped": lambda rng, image: exposed(image, rng.uniform(2, 3.5)),
    "bars": barred,
    "shape": elongated,
    "transparent": cut_out,
    "small": shrunk,
}


def copies(rng: random.Random, image: Image.Image) -> Image.Image:
    """Return a copy that is resized, slightly cropped or re-encoded."""
    width, height = image.size
    kind = rng.randrange(3)
    if kind == 0:
        return image.resize((round(width * 0.75), round(height * 0.75)))
    if kind == 1:
        return image.crop((round(width * 0.01), round(height * 0.01), round(width * 0.99), round(height * 0.99)))
    return ImageEnhance.Brightness(image).enhance(1.01)


def series(rng: random.Random, image: Image.Image) -> Images:
    """Return five photos as one takes them in one place: other parts of one photo, in slightly other light."""
    found = {}
    for number in range(5):
        zoom = rng.uniform(0.78, 1)
        width, height = (round(side * zoom) for side in image.size)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        part = image.crop((left, top, left + width, top + height))
        found[f"{number}.png"] = ImageEnhance.Brightness(part).enhance(rng.uniform(0.9, 1.1))
    return found


def plant(bench: Bench, folders: dict[str, Images]) -> None:
    """Count the findings on single photos: as they are, and with each fault."""
    rng = random.Random(0)
    for folder, images in folders.items():
        by_photo, _ = bench.look(images)
        for name, kinds in by_photo.items():
            for kind in (*PLANTED, "duplicate"):
                bench.count(kind, f"{folder}/{name}", KNOWN.get(f"{folder}/{name}") == kind, kinds)
        for kind, fault in PLANTED.items():
            planted = {name.replace(".jpg", ".png"): fault(rng, image) for name, image in images.items()}
            for name, kinds in bench.look(planted)[0].items():
                bench.count(kind, f"{folder}/{name}", True, kinds)
        twice = {**images, **{f"copy-{name}": copies(rng, image) for name, image in images.items()}}
        for name, kinds in bench.look(twice)[0].items():
            if name.startswith("copy-"):
                bench.count("duplicate", f"{folder}/{name}", True, kinds)


def count_backgrounds(bench: Bench, same: dict[str, Images], different: dict[str, Images]) -> None:
    for is_fault, folders in ((True, same), (False, different)):
        for name, images in folders.items():
            bench.count("background", name, is_fault or KNOWN.get(name) == "background", bench.look(images)[1])


def count_masked(bench: Bench) -> None:
    """Count the findings that need a mask, on the toy world, whose masks are known."""
    rng = random.Random(1)
    for number in range(60):
        spec = world.subject(world.CLASSES[number % len(world.CLASSES)], number)
        scene = world.random_scene(rng, PLACES[number % len(PLACES)])
        image, mask = world.render(spec, scene), world.object_mask(spec, scene)
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        part = rng.uniform(0.2, 0.5)
        cut = rng.choice(
            [(0, 0, round(right - part * (right - left)), 64), (0, 0, 64, round(bottom - part * (bottom - top)))]
        )
        scale = rng.uniform(0.1, 0.25)
        variants = {"whole": (image, mask), "cut off": (image.crop(cut), mask.crop(cut))}
        variants["far away"] = tuple(far(each, scale) for each in (image, mask))
        by_photo, _ = bench.look(
            {f"{name}.png": each[0] for name, each in variants.items()},
            {f"{name}.png": each[1] for name, each in variants.items()},
        )
        for kind in ("cut off", "far away"):
            bench.count(kind, f"{number}", True, by_photo[f"{kind}.png"])
            bench.count(kind, f"{number}", False, by_photo["whole.png"])


def lettered(rng: random.Random, image: Image.Image) -> Image.Image:
    """Write a line over a photo: of seven fonts, five colours, half with an outline, some of it see-through.

    Letters are 4 to 12 % of the height, and in the toy world at least 10 pixels.
    """
    is_small = image.height < 128
    text = rng.choice(SHORT_WORDS if is_small else WORDS)
    size = max(13 if is_small else 20, round(rng.uniform(0.05, 0.16) * image.height))
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{rng.choice(FONTS)}.ttf"), size)
    colour = rng.choice(COLOURS)
    outline = 0 if rng.random() < 0.5 else max(1, size // 16)
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=outline)
    x = rng.uniform(0, max(1, image.width - (right - left))) - left
    y = rng.uniform(0, max(1, image.height - (bottom - top))) - top
    other = "white" if colour in ("black", "navy", "red") else "black"
    draw.text((x, y), text, colour, font=font, stroke_width=outline, stroke_fill=other)
    opacity = rng.uniform(0.7, 1)
    layer.putalpha(layer.getchannel("A").point(lambda level: round(level * opacity)))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def count_text(bench: Bench, folders: dict[str, Images]) -> None:
    """Count text and mirrored lettering: as photos are, with a line over them, and with that mirrored."""
    rng = random.Random(4)
    for folder, images in folders.items():
        named = {name.replace(".jpg", ".png"): image for name, image in images.items()}
        written = {name: lettered(rng, image) for name, image in named.items()}
        mirrored = {name: ImageOps.mirror(lettered(rng, image)) for name, image in named.items()}
        for is_text, is_mirrored, variant in ((False, False, named), (True, False, written), (False, True, mirrored)):
            for name, kinds in bench.look(variant)[0].items():
                bench.count("mirrored", f"{folder}/{name}", is_mirrored, kinds)
                if not is_mirrored:
                    bench.count("text", f"{folder}/{name}", is_text, kinds)


def pictured(rng: random.Random, *nouns: str) -> Image.Image:
    """Return a picture of one or two things of these classes."""
    specs = [picture.random_spec(rng, noun) for noun in nouns]
    relation = rng.choice(picture.RELATIONS[:-1]) if len(specs) == 2 else ""
    return picture.render(picture.random_picture(rng, specs, relation))


def count_candidates(bench: Bench, num_pictures: int = 5) -> None:
    """Count second candidates on pictures of one and two things. num_pictures: of each class and kind."""
    rng = random.Random(6)
    for noun in picture.CLASSES:
        others = [each for each in picture.CLASSES if each != noun]
        for number in range(num_pictures):
            nouns = {"alone": (noun,), "beside": (noun, rng.choice(others)), "twice": (noun, noun)}
            images = {f"{name}.png": pictured(rng, *each) for name, each in nouns.items()}
            for name, kinds in bench.look(images, class_noun=noun)[0].items():
                bench.count("candidates", f"{noun} {number}/{name}", name == "twice.png", kinds)


def count_classes(bench: Bench, num_pictures: int = 5) -> None:
    """Count pictures of another class than the one that is named. num_pictures: of each class and kind."""
    rng = random.Random(8)
    for noun in picture.CLASSES:
        others = [each for each in picture.CLASSES if each != noun]
        for number in range(num_pictures):
            nouns = {"alone": (noun,), "beside": (noun, rng.choice(others)), "other": (rng.choice(others),)}
            images = {f"{name}.png": pictured(rng, *each) for name, each in nouns.items()}
            for name, kinds in bench.look(images, class_noun=noun)[0].items():
                bench.count("class", f"{noun} {number}/{name}", name == "other.png", kinds)


def far(image: Image.Image, scale: float) -> Image.Image:
    """Return an image small in the middle of a larger one."""
    side = round(64 / scale)
    canvas = Image.new(image.mode, (side, side), (120, 160, 90) if image.mode == "RGB" else 0)
    canvas.paste(image, ((side - 64) // 2, (side - 64) // 2))
    return canvas


def toy_folders(num_subjects: int = 2) -> dict[str, Images]:
    """Return five photos of each subject of ten classes, in different places. num_subjects: of each class."""
    found = {}
    for noun in world.CLASSES:
        for seed in range(num_subjects):
            images = photos(noun, seed, 5, PLACES)
            found[f"{noun}-{seed}"] = {f"{number}.png": image for number, image in enumerate(images)}
    return found


def toy_world() -> Bench:
    bench = Bench("toy world", resolution=64)
    rng = random.Random(2)

    def folder(noun: str, seed: int, places: Sequence[str]) -> Images:
        return {f"{number}.png": image for number, image in enumerate(photos(noun, seed, 5, places))}

    different = toy_folders()
    plant(bench, different)
    places = [world.PLACES[number % len(world.PLACES)] for number in range(len(world.CLASSES))]
    same = {f"{noun} {place}": folder(noun, 7, [place]) for noun, place in zip(world.CLASSES, places, strict=True)}
    mixed = {f"{noun} two": folder(noun, 8, [*rng.sample(PLACES, 4), PLACES[0]]) for noun in world.CLASSES}
    count_backgrounds(bench, same, {**different, **mixed})
    count_masked(bench)
    return bench


def photographs_in(root: Path) -> dict[str, Images]:
    """Return the photographs of each folder of a folder."""
    return {
        folder.name: {path.name: reduced(load_image(path), PHOTOGRAPH_SIDE) for path in sorted(folder.glob("*.jpg"))}
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }


def photographs(root: Path) -> Bench:
    bench = Bench("photographs", resolution=512)
    folders = photographs_in(root)
    plant(bench, folders)
    rng = random.Random(3)
    same = {f"{name}/{file}": series(rng, image) for name, images in folders.items() for file, image in images.items()}
    different = dict(folders)
    for number in range(30):
        names = rng.sample(sorted(folders), 5)
        different[f"mixed {number}"] = {f"{name}.png": rng.choice(list(folders[name].values())) for name in names}
    count_backgrounds(bench, same, different)
    return bench


def text_benches(root: Path) -> list[Bench]:
    """Return what was found of text; nothing without the extra `ocr`."""
    if not is_available():
        print("text and mirrored lettering are left out: pip install dreambooth[ocr]")
        return []
    readers = PhotoReaders(read_text=TextReader(num_threads=1))
    toy = Bench("toy world", resolution=64, readers=readers)
    count_text(toy, toy_folders(1))
    if not root.is_dir():
        return [toy]
    real = Bench("photographs", resolution=512, readers=readers)
    count_text(real, photographs_in(root))
    return [toy, real]


def masks_bench() -> Bench:
    """Return what was found where a segmenter finds the masks."""
    bench = Bench("toy world", resolution=64, readers=PhotoReaders(SubjectFinder(MASK.embedded)))
    count_candidates(bench)
    return bench


def class_bench(model: Path) -> list[Bench]:
    """Return what was found where a model is asked for the class; nothing without the model's folder."""
    if not model.is_dir():
        print(f"the class is left out: there is no {model}; python -m dreambooth toyworld blip2 makes it")
        return []
    bench = Bench("toy world", resolution=64, readers=PhotoReaders(sees=PhotoDescriber(str(model)).sees))
    count_classes(bench)
    return [bench]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=Path("../shared/dreambench"), help="folder of folders")
    parser.add_argument("--only", choices=("text", "candidates", "class"), help="look for this alone")
    parser.add_argument("--reader", type=Path, default=Path(DESCRIBE.embedded), help="of the class (%(default)s)")
    args = parser.parse_args()
    benches = text_benches(args.photographs) if args.only in (None, "text") else []
    benches += [masks_bench()] if args.only in (None, "candidates") else []
    benches += class_bench(args.reader) if args.only in (None, "class") else []
    if args.only is None:
        benches += [toy_world()] + ([photographs(args.photographs)] if args.photographs.is_dir() else [])
    print("| finding | photos | planted and found | false alarms | precision |\n|---|---|---|---|---|")
    for kind in dict.fromkeys(kind for bench in benches for kind in bench.counts):
        for bench in benches:
            if kind in bench.counts:
                print(f"| {kind} | {bench.source} | {bench.counts[kind].row} |")
    for bench in benches:
        for kind, names in bench.alarms.items():
            print(f"false alarm, {bench.source}, {kind}: {', '.join(names)}")


if __name__ == "__main__":
    main()
