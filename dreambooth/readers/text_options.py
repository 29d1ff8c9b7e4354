"""How long and how freely a reader writes: options of transformers' GenerationConfig, checked before a model loads."""

from dataclasses import asdict, dataclass
from typing import Any

from dreambooth.errors import UserError

MAX_BEAMS = 64  # each holds the keys and values of a text of its own
MAX_SEED = 2**63 - 1
# Texts hardly change near the ends of these ranges; far beyond them scores overflow.
TEMPERATURES = (0.001, 1000)
MAX_REPETITION_PENALTY = 1000
LENGTH_PENALTIES = (-100, 100)


@dataclass(frozen=True)
class TextOptions:
    """Hold how a text is written.

    max_tokens, min_tokens: of the text. beams: texts that are followed at once (1: the likeliest word each time).
    temperature: 0 writes the likeliest text; above, words are drawn, at 1 as likely as the model holds them. top_p:
    draw from the likeliest words that have this probability together. repetition_penalty, length_penalty: above 1
    words repeat less, texts of beams are longer. seed: of what is drawn.
    """

    max_tokens: int = 40
    min_tokens: int = 0
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens={self.max_tokens}: must be at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UserError(f"min_tokens={self.min_tokens}: must be 0 to {self.max_tokens}, the most of a text")
        if not 1 <= self.beams <= MAX_BEAMS:
            raise UserError(f"beams={self.beams}: must be 1 to {MAX_BEAMS}; each takes memory for a text of its own")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed={self.seed}: must be 0 to {MAX_SEED}")
        self._check_fractions()

    def _check_fractions(self) -> None:
        """Raise UserError for a number that is out of its range, or none."""
        lowest, highest = TEMPERATURES
        if not (self.temperature == 0 or lowest <= self.temperature <= highest):
            raise UserError(f"temperature={self.temperature}: must be 0 (the likeliest text), or {lowest} to {highest}")
        if not (0 < self.top_p <= 1):
            raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1 (all words)")
        if not 0 < self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise UserError(
                f"repetition_penalty={self.repetition_penalty}: must be above 0 and at most {MAX_REPETITION_PENALTY}; "
                "1 is none"
            )
        lowest, highest = LENGTH_PENALTIES
        if not lowest <= self.length_penalty <= highest:
            raise UserError(f"length_penalty={self.length_penalty}: must be {lowest} to {highest}; 1 is usual")

    def as_generation_config(self) -> dict[str, Any]:
        """Return them as arguments of `generate`."""
        fields = asdict(self)
        found = {"max_new_tokens": fields["max_tokens"], "min_new_tokens": fields["min_tokens"] or None}
        found |= {"num_beams": self.beams, "repetition_penalty": self.repetition_penalty}
        if self.beams > 1:
            found["length_penalty"] = self.length_penalty
        if self.temperature > 0:
            return found | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return found | {"do_sample": False}
