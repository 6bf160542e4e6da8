"""Training: records, augmentation, targets, losses and the loop."""
