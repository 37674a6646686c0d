"""The networks: StyleGAN2 with SPADE, and the solvers."""
