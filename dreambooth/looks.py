"""Words for what a thing looks like: colours, patterns, materials. All in small letters."""


def words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLOURS = words_of(
    """
    amber aqua auburn azure beige bicolor bicolour black blond blonde blue bright bronze brown burgundy caramel
    charcoal chestnut colorful colourful copper coral cream crimson cyan dark ebony emerald fawn ginger gold golden
    gray green grey hazel indigo ivory khaki lavender lemon light lilac magenta maroon mauve mint multicolored
    multicoloured mustard navy ochre olive orange pale pastel peach pink plum purple red rose ruby russet rust sandy
    scarlet sepia silver tan taupe teal tricolor tricolour turquoise violet white yellow
    """
)
PATTERNS = words_of(
    """
    banded brindle calico checked checkered chequered dappled dotted flecked floral freckled marbled merle mottled
    patched patterned piebald plaid speckled spotted spotty striped stripy tabby tartan tortoiseshell zigzag
    """
)
MATERIALS = words_of(
    """
    bamboo brass canvas cardboard ceramic chrome clay cotton denim enamel felt fluffy furry fuzzy glass glossy hairy
    knitted leather matte metal metallic nylon plastic plush porcelain rubber shaggy shiny silk steel suede velvet
    wooden wool woolen woollen
    """
)
