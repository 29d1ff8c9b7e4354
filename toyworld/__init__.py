"""The toy world: a renderer of captioned 64 px images, and the tiny Stable Diffusion trained on them.

palette, canvas   colours and a small drawing surface over PIL
classes, places   one plain function per object class and per place
world             identity (`Spec`) apart from scene (`Scene`), their sampling, and `render`
editions          the first edition, which the first base knows, and the second; what a training asks of each
second            the second edition: up to three things in an image, with relations, heads, eyes and clothes
captions          many ways to say what an image shows
tokenizer         a CLIPTokenizer that knows the world's words and reserved rare ones
latents, vae      latents defined as principal components of patches, and the autoencoder that imitates them
base              the UNet and the text encoder, trained together
judge             a classifier and identity embedding that knows the truth
evaluate, outcome what the base draws, and what DreamBooth did to it, by that judge
cli               `python -m dreambooth toyworld ...`
"""
