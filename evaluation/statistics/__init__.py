"""What distances are made of: arrays that are looked at first, moments, kernels, estimates."""
