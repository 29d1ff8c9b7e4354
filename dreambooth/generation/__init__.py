"""Image generation: the sampler, the class prior, and images with the recipe that reproduces them."""
