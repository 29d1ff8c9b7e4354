"""The paper's protocol on any model or run: subjects x prompts x images, scored, in one table beside the paper's rows.

Read in order: `run.evaluate`, a table of contents; `subjects` and `prompts`, what is sampled; `models`; `protocol`, the
images; `scoring`, one number per image; `rows` and `tables`, the result.
"""
