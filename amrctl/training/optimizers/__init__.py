"""Optimisers: what turns gradients into new weights.

A component is a function `(config, parameters) -> torch.optim.Optimizer`. The loop sets the
learning rate before every step and calls `step(closure)`; the closure clears the gradients,
computes the loss, goes backward, clips, and returns the loss, so that an optimiser which needs a
second pass per step can ask for one. All state must be in `state_dict()`: a run is resumed from it.

An optimiser that looks at more than single weights (a norm, how many dimensions a tensor has) may have a
method `of_stack()`, called once, after which the first dimension of every tensor counts networks that know
nothing of each other (`training.stacked`). Without it, it does not go with `--together`.
"""
