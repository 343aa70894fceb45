"""endauda: several adapted segmentation teachers and unlabelled images in, one better student out."""

__version__ = "0.1.0"
