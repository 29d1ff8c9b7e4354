"""DreamBooth: personalise a text-to-image diffusion model from 3 to 10 pictures of a subject.

Ruiz et al. 2023, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation" (arXiv
2208.12242). Importing this package loads nothing heavy; `dreambooth.engine.train` is where a run reads like a table of
contents.
"""

__version__ = "0.1.0"
