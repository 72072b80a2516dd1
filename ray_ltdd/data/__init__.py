"""Sources, the one long-tailed split, the uint8 bank of images, whole-batch augmentation."""
