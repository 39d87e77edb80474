"""From one layout of checkpoints to another, and to a folder for timm and the Hugging Face hub."""
