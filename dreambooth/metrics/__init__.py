"""Scores of images (subject fidelity, prompt fidelity, prior preservation), and the choice of the best step.

`encoders` embeds images and texts, `scores` makes one number per image out of embeddings, `subject` applies them to
one subject's images, `selection` says which step of a run is the best.
"""
