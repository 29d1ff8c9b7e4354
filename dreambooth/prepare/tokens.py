"""Rare words that can stand for a subject: one token in each of the base's tokenizers, the best first.

A word of several tokens brings the meaning of its parts; a common one brings its own. What the base draws of a word is
looked at only on request, as each takes images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.errors import ModelError
from dreambooth.families.builtin_configs import END, make_tokenizer
from dreambooth.families.clip import ClipTokens
from dreambooth.families.loading import load_tokenizer
from dreambooth.families.qwen import QwenTokens
from dreambooth.home_folder import with_home
from dreambooth.prompt_words import has_words

NUM_WORDS = 8  # that are proposed
# Letters that many read as a word, a name or an obscenity; of consonants alone, as all that is proposed.
KNOWN = """
bbc bdsm bdsp bmw bpd btch btn bts cbc cbd cbs cbt ccm ccp cctv cdc cdp cfp cfr clr cmd cnc cnn cnt cnts css ctrl dbs
dbz dcs dhl dlc dmx dnd dnr dprk dps dvd dvr dwp fbs fck fckd fckn fcks fdr ffxv fkn fks fml fps ftp fwb gbp gdp gmbh
gmt gps gpt grl gsp gtr hcs hdd hdr hgtv hmv hpv hrs hsbc hsv html http httr jdm jfc jfk kfc kgb kkk kkkk kkr kmh kph
lbj lcd lgbt llc lls lmp lps lrt lsd ltd mbps mcm mds mdt mgm mgs mjpg mlb mlk mlp mls mmc mnf mph mrs msl msn msp mss
mtb mtg mth mtr mtv mvc mvp nbc nbl ncs nds nfc nfl ngc nhl nhs npc npr npt nrf nrg nrl nsfw nsw nwsl nxt pbb pbc pbs
pdf pdx pgs phd pkg pkk pln plz pms png ppl ppm ppv prc psst psv ptsd pvc pvp pwm qld qtr rcb rcn rdr rmb rms rnb rnc
rpg rpm rps rss rtl rtr rts rvs scp sdk shld sht shts sjw skc sks smg sms snl snp sqft sql srp srs ssd ssh ssr sst std
stds stl stx svg svt tbd tbr tbs tbt tcm tcs tdp tfw thc thn tlc tls tmw tnt trc trs tsk tsm tts tvc tvn tvxq txst txt
vcs vhs vpn vps wbc wcs wcw wdw wrs wsj wtc wtf wth wwdc wwf wwfc www xml xxx xxxx zzzz
"""
KNOWN_MEANINGS = frozenset(KNOWN.split())
Draw = Callable[[str, int], list[Image.Image]]  # a prompt and a number of images to images, always of the same noise
Embed = Callable[[Sequence[Image.Image]], Any]  # images to embeddings of length 1, [B, D]


@dataclass(frozen=True)
class Token:
    """Hold a word that may stand for the subject. token_ids: one for each tokenizer; the higher, the rarer.

    variance: mean distance between images that the base draws of it, 0 to 2; likeness: mean cosine of images of "<word>
    <class>" to those of the class alone, of the same noise: 1 where the word changes nothing. None: nothing was drawn.
    """

    word: str
    token_ids: tuple[int, ...]
    variance: float | None = None
    likeness: float | None = None
    images: tuple[Image.Image, ...] = ()


class _Clip(ClipTokens):
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


class _Qwen(QwenTokens):
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


TextSide = _Clip | _Qwen
T5_PART = {"flux1": "tokenizer_2", "sd3": "tokenizer_3"}  # beside CLIP's, which judge how rare a word is


def load_text_sides(base: str, family: str) -> list[TextSide]:
    """Return the base's tokenizers: of its folder, else CLIP's own where the family has it. Raises ModelError.

    Other than tokenizers nothing of the base is loaded.
    """
    folder = Path(with_home(base))
    kind: type[TextSide] = _Clip if family in ("sd", "sdxl", *T5_PART) else _Qwen
    parts = sorted(
        path.name for path in folder.glob("tokenizer*") if path.is_dir() and path.name != T5_PART.get(family)
    )
    if parts:
        from transformers import CLIPTokenizer, PreTrainedTokenizerFast

        tokenizer_class = CLIPTokenizer if kind is _Clip else PreTrainedTokenizerFast
        return [kind(load_tokenizer(folder, part, tokenizer_class)) for part in parts]
    if kind is _Clip:  # those of all such bases differ in their padding alone
        return [_Clip(make_tokenizer(END))]
    raise ModelError(f"{base}: its tokenizer is not here; download the base to have words proposed")


def rank_tokens(sides: Sequence[TextSide], class_noun: str, number: int = NUM_WORDS) -> list[Token]:
    """Return words that are one rare token to each tokenizer, the rarest first.

    Names that many know (bmw, sks, a rifle) are left out, and words of the class noun.
    """
    ranks = [{word: place for place, word in enumerate(side.rare_words())} for side in sides]
    both = [word for word in ranks[0] if all(word in rank for rank in ranks)]
    found = []
    for word in sorted(both, key=lambda word: (sum(rank[word] for rank in ranks), word)):
        ids = [side.tokenize(word) for side in sides]
        if word not in KNOWN_MEANINGS and all(len(own) == 1 for own in ids) and not has_words(class_noun, word):
            found.append(Token(word, tuple(own[0] for own in ids)))
    return found[:number]


def draw_tokens(tokens: Sequence[Token], class_noun: str, draw: Draw, embed: Embed, num_images: int = 4) -> list[Token]:
    """Return the tokens with what the base draws of them, those that mean least first.

    A word that means nothing gives images that differ as much as they can, and changes little beside the class noun:
    the order is by variance + likeness.
    """
    class_BD = embed(draw(f"a photo of a {class_noun}", num_images))
    drawn = []
    for token in tokens:
        images = draw(f"a photo of {token.word}", num_images)
        alone_BD, beside_BD = embed(images), embed(draw(f"a photo of a {token.word} {class_noun}", num_images))
        distances = [1 - float((alone_BD[one] * alone_BD[other]).sum()) for one, other in _pairs(num_images)]
        likeness = float((beside_BD * class_BD).sum(1).mean())
        variance = sum(distances) / max(1, len(distances))
        drawn.append(Token(token.word, token.token_ids, variance, likeness, tuple(images)))
    return sorted(drawn, key=lambda token: -((token.variance or 0) + (token.likeness or 0)))


def _pairs(number: int) -> list[tuple[int, int]]:
    return list(combinations(range(number), 2))
