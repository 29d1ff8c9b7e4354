"""The words of captions that say what a subject looks like, and how a caption's parts are told apart.

The identifier is to learn the subject's looks. A caption that names them leaves them to the other words, and the
identifier learns less; what a caption does not name (place, light, pose) is learned with the subject. All in small
letters; a word that ends with -ish or -coloured is a colour too.
"""

from dreambooth.looks import COLOURS, MATERIALS, PATTERNS, words_of

MARKS = words_of(  # what a subject has, and no place
    """
    antenna antennae antennas badge beak belly blaze buckle button buttons coat collar crest dots ear ears emblem
    embroidery eye eyebrows eyes face feathers feet fin fins fleck flecks freckles fringe fur hair handle handles
    hood hooves horn horns label legs lettering lid logo mane mark marking markings mouth muzzle nose nozzle patch
    patches paw paws pocket pockets pompom scales seam seams snout spikes spot spots spout stitching strap straps
    stripe stripes tail tails teeth tip tongue trim tufts tusks wheel wheels whiskers wings zip zipper
    """
)
LOOKS = COLOURS | PATTERNS | MATERIALS
SHADES = words_of("bright dark light pale")  # alone they tell the light, with another word a colour
STATES = words_of("back between closed crossed down forward open out perked raised spread up wide")  # of a mark: a pose
JOINING = words_of("and or with very a an the but , -")  # between two words of looks
# From the subject to its looks: those say what it is, these what it has.
BEING = words_of("is are was painted dyed coloured colored made")
HAVING = words_of("has have having with whose featuring")
LINKS = BEING | HAVING
ARTICLES = words_of("a an the my our your his her their its one this")
PLACES = words_of(  # what follows them is a place, not the subject
    """
    above across against along among around at behind below beneath beside between beyond by down during from in
    inside into near next off on onto outside over past through to toward towards under underneath up upon within
    """
)
BREAKS = frozenset(".,;:()[]|/-–—")  # one after another, also in a row: "),"


def says_looks(word: str) -> bool:
    """Return whether a word says what a thing looks like."""
    parts = word.replace("-", " ").split()
    endings = ("ish", "coloured", "colored", "haired", "eyed", "eared")
    return any(part in LOOKS or _with_ending(part, endings) for part in parts)


def _with_ending(word: str, endings: tuple[str, ...]) -> bool:
    stems = (word.removesuffix(ending) for ending in endings if word.endswith(ending))
    return any(
        stem in ("", *COLOURS) or f"{stem}e" in COLOURS or (len(stem) > 1 and stem[:-1] in COLOURS) for stem in stems
    )


def is_mark(word: str) -> bool:
    """Return whether a word is a part or mark of a subject: fur, ears, stripes."""
    return word in MARKS


def is_break(word: str) -> bool:
    return set(word) <= BREAKS
