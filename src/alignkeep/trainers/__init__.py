"""What the tunes of `train` and `align` share: adapters, processes, checkpoints, and what is saved in the end."""
