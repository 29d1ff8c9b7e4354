"""Every setting of a run: typed, documented, checked before anything heavy is imported.

OmegaConf merges the YAML file with `section.key=value` overrides. All mistakes are found and reported together, each
with the key, the value and what is allowed. Nothing here imports torch.
"""

from dreambooth.config.deciding import deciding_settings
from dreambooth.config.fields import Config, SubjectConfig
from dreambooth.config.keys import config_fields, default_of, describe_config, field_of, subject_key, with_brackets
from dreambooth.config.reading import (
    PROVENANCE,
    Change,
    as_overrides,
    flatten,
    load_config,
    raw_value,
    restricted_changes,
    to_dict,
)

__all__ = [
    "PROVENANCE",
    "Change",
    "Config",
    "SubjectConfig",
    "as_overrides",
    "config_fields",
    "deciding_settings",
    "default_of",
    "describe_config",
    "field_of",
    "flatten",
    "load_config",
    "raw_value",
    "restricted_changes",
    "subject_key",
    "to_dict",
    "with_brackets",
]
