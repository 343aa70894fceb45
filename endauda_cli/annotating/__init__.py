"""Engine: label maps in the formats of annotation tools and other programs, and what people made of them back again.

A format is one file and one row in ``formats.FORMATS``. ``runs`` holds the run-length codes that some of them use.
"""
