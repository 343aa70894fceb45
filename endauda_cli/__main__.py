"""``python -m endauda_cli``, and the installed script."""


def entry() -> None:
    """Run the command line. Ctrl-C while Python loads it ends as quietly as it does later."""
    from endauda_cli.terminal.starting import hush, mend_surroundings, unloadable

    hush()
    mend_surroundings()
    try:
        from endauda_cli import cli

        cli.entry()
    except ImportError as error:  # of a library that parses or prints
        if (sentence := unloadable(error)) is None:
            raise
        raise SystemExit(f"endauda: {sentence}") from None


if __name__ == "__main__":
    entry()
