"""One file per command: its options, help, one engine call. Nothing here imports torch before it runs."""
