"""Training data: images, captions, buckets, latents."""
