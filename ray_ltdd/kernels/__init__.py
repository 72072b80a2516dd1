"""Convolutions, normalisation and moments for float32 on CPUs, written in C: the leaf that networks compute with where no GPU is there."""
