"""The second edition of the toy world: up to three things in an image, which the demo's base is trained on.

canvas            a drawing surface that draws in colour, as numbered parts, or as outlines
look              what a drawing function takes: colours, pattern, head, eyes, what is worn
creatures, objects  one plain function per class, and `things`, the table of them
picture           identity (`Spec`), places and relations (`Thing`, `Picture`), their sampling, and `render`
truth             box, mask and parts of each thing, and the outlines
captions          many ways to say what a picture shows
judge             for each class whether it is in an image, where, and what it looks like
evaluate          what a base draws, by that judge
"""
