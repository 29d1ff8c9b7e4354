"""The laboratory: the paper's ablations, reproduced on the toy world, every metric with its spread.

`experiments` is the table of what is compared, `plan` makes trials (variant x subject x seed) of it, `runs` trains,
samples and measures (`measure`) one trial, the pool of `dreambooth.sweep` runs them in parallel, `store` keeps the
results; `tables`, `plots` and `report` show them.
"""
