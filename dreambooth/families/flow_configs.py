"""The shapes of published bases of flow matching: what can be planned for them needs no download.

The numbers are those of the published config.json files; where none is given, diffusers' class has the right default.
Their tokenizers are not shipped: `builtin_configs.make_stand_in`.
"""

from dreambooth.families.builtin_configs import CLIP_BIG_G, CLIP_L, END, VAE, BuiltinConfig, Config

FLOW: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
BY_SIZE = FLOW | {"use_dynamic_shifting": True}
VAE_16 = VAE | {
    "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
FILM_VAE: Config = {"_class_name": "AutoencoderKLQwenImage"}
QWEN3_4B: Config = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560,
    "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 40960, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3_8B = QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
QWEN3_VL_4B: Config = {
    "architectures": ["Qwen3VLModel"], "model_type": "qwen3_vl",
    "text_config": {
        **{key: value for key, value in QWEN3_4B.items() if key not in ("architectures", "model_type")},
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    },
    "vision_config": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}  # fmt: skip
QWEN2_5_VL_7B: Config = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
    "text_config": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    },
}  # fmt: skip
T5_XXL: Config = {
    "architectures": ["T5EncoderModel"], "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64,
    "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
CLIP_L_POOLED = CLIP_L | {"architectures": ["CLIPTextModelWithProjection"]}

Z_IMAGE: Config = {"_class_name": "ZImageTransformer2DModel"}
KLEIN_4B: Config = {
    "_class_name": "Flux2Transformer2DModel", "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False,
}  # fmt: skip
KLEIN_9B = KLEIN_4B | {
    "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
}  # fmt: skip
FLUX_1: Config = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
SD_3_5_MEDIUM: Config = {
    "_class_name": "SD3Transformer2DModel", "num_layers": 24, "num_attention_heads": 24,
    "caption_projection_dim": 1536, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
SD_3_5_LARGE: Config = {
    "_class_name": "SD3Transformer2DModel", "num_layers": 38, "num_attention_heads": 38,
    "caption_projection_dim": 2432, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
}  # fmt: skip

QWEN = {"tokenizer": "qwen"}
CLIP_T5 = {"tokenizer": END}, {"tokenizer_2": "t5"}
CLIPS_T5 = {"tokenizer": END, "tokenizer_2": "!"}, {"tokenizer_3": "t5"}
KLEIN = {"_class_name": "Flux2KleinPipeline"}
KLEIN_PARTS = {"vae": {"_class_name": "AutoencoderKLFlux2"}, "scheduler": BY_SIZE}
SD_3 = {"_class_name": "StableDiffusion3Pipeline"}
SD_3_PARTS = {
    "vae": VAE_16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "text_encoder": CLIP_L_POOLED,
    "text_encoder_2": CLIP_BIG_G,
    "text_encoder_3": T5_XXL,
    "scheduler": FLOW | {"shift": 3.0},
}
FLOW_CONFIGS = {
    "z-image": BuiltinConfig(
        {"_class_name": "ZImagePipeline"},
        {"transformer": Z_IMAGE, "vae": VAE_16, "text_encoder": QWEN3_4B, "scheduler": FLOW | {"shift": 3.0}},
        {},
        QWEN,
    ),
    "flux2-klein-4b": BuiltinConfig(KLEIN, KLEIN_PARTS | {"transformer": KLEIN_4B, "text_encoder": QWEN3_4B}, {}, QWEN),
    "flux2-klein-9b": BuiltinConfig(KLEIN, KLEIN_PARTS | {"transformer": KLEIN_9B, "text_encoder": QWEN3_8B}, {}, QWEN),
    "qwen-image": BuiltinConfig(
        {"_class_name": "QwenImagePipeline"},
        {
            "transformer": {"_class_name": "QwenImageTransformer2DModel"},
            "vae": FILM_VAE,
            "text_encoder": QWEN2_5_VL_7B,
            "scheduler": BY_SIZE | {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192},
        },
        {},
        QWEN,
    ),
    "krea2": BuiltinConfig(
        {"_class_name": "Krea2Pipeline"},
        {
            "transformer": {"_class_name": "Krea2Transformer2DModel"},
            "vae": FILM_VAE,
            "text_encoder": QWEN3_VL_4B,
            "scheduler": BY_SIZE | {"max_image_seq_len": 6400},
        },
        {},
        QWEN,
    ),
    "flux1": BuiltinConfig(
        {"_class_name": "FluxPipeline"},
        {"transformer": FLUX_1, "vae": VAE_16, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "scheduler": BY_SIZE},
        *CLIP_T5,
    ),
    "sd3.5-medium": BuiltinConfig(SD_3, SD_3_PARTS | {"transformer": SD_3_5_MEDIUM}, *CLIPS_T5),
    "sd3.5-large": BuiltinConfig(SD_3, SD_3_PARTS | {"transformer": SD_3_5_LARGE}, *CLIPS_T5),
}
