"""Load models one after another, and keep what can be used again."""

from dataclasses import replace

from dreambooth.devices import find_device, kind_of
from dreambooth.generation.models.additions import check_additions, learned_by, lora_file, words_beside
from dreambooth.generation.models.loading import Model, checked_digest, load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.methods import adapters
from dreambooth.methods.lora_switch import LoraSwitch


class ModelPool:
    """Keep the last model: another request for it loads nothing, one for its base with other LoRAs only those.

    device: as for `load_model`. loaded: a model that is in memory already.
    """

    def __init__(self, device: str, loaded: Model | None = None) -> None:
        self._device = device
        self._last = loaded
        self._typed = None if loaded is None else loaded.ref  # the request that it answers
        self._switch: LoraSwitch | None = None

    def __call__(self, ref: ModelRef) -> Model:
        """Return a model as `load_model` does. Raises ModelError, UserError."""
        if self._last is None or self._typed is None or ref != self._typed:
            self._last = self._switched(ref) or self._loaded(ref)
            self._typed = ref
        return self._last

    def _loaded(self, ref: ModelRef) -> Model:
        self._last = self._switch = None  # free its memory before the next one is loaded
        if not self._can_switch(ref):
            return load_model(ref, self._device)
        model = load_model(replace(ref, loras=()), self._device)
        adapters.merge(model.family)  # what is laid over has the names of a plain model's modules
        self._switch = LoraSwitch(model.family)
        return self._with_loras(model, ref)

    def _switched(self, ref: ModelRef) -> Model | None:
        """Return the last model with other LoRAs; None where it has another base, or other words."""
        if self._last is None or self._typed is None or self._switch is None or not self._can_switch(ref):
            return None
        if replace(ref, loras=()) != replace(self._typed, loras=()):
            return None
        return self._with_loras(self._last, ref)

    def _with_loras(self, model: Model, ref: ModelRef) -> Model:
        assert self._switch is not None
        check_additions(ref.loras, ())
        paths = [lora_file(each) for each in ref.loras]
        self._switch.lay_over([(path, each.weight) for path, each in zip(paths, ref.loras, strict=True)])
        digests = [checked_digest(path, each.sha256) for path, each in zip(paths, ref.loras, strict=True)]
        loras = tuple(replace(each, sha256=digest) for each, digest in zip(ref.loras, digests, strict=True))
        subjects = (() if model.card is None else model.card.subjects) + learned_by(loras)
        return replace(model, ref=replace(model.ref, loras=loras), subjects=subjects)

    def _can_switch(self, ref: ModelRef) -> bool:
        """Return whether LoRAs over this model can be changed in memory, to the bits that loading it would give.

        Not where words were learned with them, and not in half precision, to which loading rounds the sum.
        """
        if ref.quantize is not None:  # nothing can be laid over quantized weights
            return False
        is_float32 = (ref.dtype or kind_of(find_device(self._device)).dtype) == "float32"
        return bool(ref.loras) and is_float32 and not any(words_beside(lora_file(each)) for each in ref.loras)
