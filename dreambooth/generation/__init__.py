"""From prompts to images: the sampler, the class prior, and images with the recipe that makes them again."""
