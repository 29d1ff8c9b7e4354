"""Models that read images: where something is, what an image shows, which image a text fits.

loading       parts of transformers by hub id or folder, in half precision or quantized
masks         find_mask: the mask of what a text names, by CLIPSeg, SAM or SAM 3
protocols     what a reader can do, and what it returns
text_options  how long and how freely a reader writes
blip2, kosmos2, chat, search, matching   the readers
likelihood    the probability of an answer
table         which of them a model needs: one row a kind of model
request       what is asked of images
describe      captions, answers and boxes of many images, in batches
attention     which patches each word was written from
lettering     lines of text in an image, by RapidOCR
one_photo     what `prepare` asks about a photo
teach         a BLIP-2 that learns one subject
taught        the name that it has learned
drawing       boxes and attention, on images
outputs       JSON lines, CSV, images, a page
"""
