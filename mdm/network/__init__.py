"""The denoiser (paper Sec. 3.2, App. A): what it is made of, its weights on disk, what it costs."""
