"""``sample()``: the search for a sampler, its draws and the verdict on them."""
