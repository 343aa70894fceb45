"""One file per command: signature, help, one engine call. Nothing here imports torch before it runs."""
