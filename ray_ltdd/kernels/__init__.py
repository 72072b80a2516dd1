"""Convolutions and normalisation for float32 on CPUs, written in C: the leaf that networks compute with where neither a GPU nor bfloat16 is there."""
