"""Settings that suit a base and photos, each with its reason: what `new` and `prepare` write, and what `auto` becomes.

`facts` reads what a base is, `rules` has the values with their sources, `draft` makes a config file of them, and
`automatic` fills in the keys of a config that say `auto`. Nothing here imports torch.
"""
