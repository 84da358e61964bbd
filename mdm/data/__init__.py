"""Position -> sample: the order of training, bytes out of tars, pixels, captions and their encoder's states."""
