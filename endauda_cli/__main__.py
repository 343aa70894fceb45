"""``python -m endauda_cli``, and the installed script."""


def entry() -> None:
    """Run the command line. Ctrl-C while Python loads it ends as quietly as it does later."""
    from endauda_cli.terminal.starting import hush, mend_surroundings

    hush()
    mend_surroundings()
    from endauda_cli import cli

    cli.entry()


if __name__ == "__main__":
    entry()
