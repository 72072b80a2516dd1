"""Networks for small images, the experts and students built from them, and what looks inside them."""
