"""Students: rendering, fine-tuning and export of the model that learns."""
