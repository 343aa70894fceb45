"""Engine: archives of several teachers (or the teachers' networks) -> one set of fused labels.

``job`` is the whole of it: ``choosing`` decides whom to trust, ``rank_certainty`` what a certainty is worth, ``image``
fuses one image by one of the ``rules``, ``journal`` remembers what is finished, ``report`` draws it; ``live``
runs networks in place of archives.
"""
