"""Is it the subject, does it follow the prompt, what did the model forget? Scores of pictures, and the best step.

`encoders` embeds pictures and texts, `scores` makes one number per picture out of embeddings, `subject` applies them to
one subject's pictures, `selection` says which step of a run is the best.
"""
