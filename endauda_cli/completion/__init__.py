"""TAB: what a half-typed line may go on with (``tab``, ``values``), in each of the ``shells``."""
