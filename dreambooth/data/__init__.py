"""From files on disk to what a step learns from: images, captions, buckets, latents."""
