"""Models that read images of the toy world, trained from scratch: masks, captions, answers and boxes.

scenes      a rendering of either edition with all that its renderer knows
segmenter   a SegFormer: which pixels belong to a thing of which class?
questions   captions, questions and answers of a rendering
words       a tokenizer of the toy world's words
batches     the renderings and batches that they learn from
lessons     what image encoders and queries learn first: what does each part of an image show?
blip2       a BLIP-2: what does an image show?
languages   captions in four languages, in pieces
kosmos2     a Kosmos-2: where is what a caption names?
blip2_metrics, figures   how often it is right
cli         the commands that train and measure them
"""
