"""The laboratory: the paper's ablations, reproduced on the toy world, every figure with its spread.

`experiments` is the table of what is compared, `plan` makes cells (row x subject x seed) of it, `runs` trains, draws
and measures (`measure`) one cell, `pool` runs them in parallel, `store` keeps the figures; `tables`, `plots` and
`report` show them.
"""
