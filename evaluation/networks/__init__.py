"""Networks that see images and captions, and their files of weights."""
