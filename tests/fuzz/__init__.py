"""Fuzzing: arbitrary bytes in place of every kind of file that a stranger may have made.

A *target* takes bytes, puts them where the program expects a file and reads it; whatever the bytes are, it may end well
or with an ``EndaudaError``, within 2 s and 300 MB. ``tests/fuzz/targets`` holds them, a module per area;
``seeds/NAME`` files to begin from (or a target makes its own), ``findings/NAME`` inputs that once went wrong.

``pytest tests/fuzz`` tries all seeds and findings and a bounded number of changes of them. A whole run needs atheris
(``pip install atheris``)::

    python -m tests.fuzz                     all targets, 500,000 executions or 20 minutes each
    python -m tests.fuzz policy journal --runs 10000
"""
