"""How long and how freely a reader writes: options of transformers' GenerationConfig, checked before a model loads."""

from dataclasses import asdict, dataclass
from typing import Any

from dreambooth.errors import UserError


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
        if not (0 <= self.min_tokens <= self.max_tokens and self.max_tokens >= 1):
            raise UserError(
                f"max_tokens={self.max_tokens}, min_tokens={self.min_tokens}: the first must be at least 1, and no "
                "less than the second"
            )
        if self.beams < 1 or self.seed < 0:
            raise UserError(f"beams={self.beams}, seed={self.seed}: beams must be at least 1, the seed at least 0")
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature}: must be 0 (the likeliest text) or more")
        if not (0 < self.top_p <= 1):
            raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1 (all words)")
        if not self.repetition_penalty > 0:
            raise UserError(f"repetition_penalty={self.repetition_penalty}: must be above 0; 1 is none")

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
