"""Look at a subject's photos before training: what is wrong with them, and what to train with.

`measures` gives numbers, `findings` says what they mean, `inspection` asks both of a folder. Originals are read and
never written.
"""
