# fish completion for endauda: put this file into ~/.config/fish/completions.
complete --command endauda --no-files \
    --arguments "(env _ENDAUDA_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=(commandline -cp) endauda 2>/dev/null)" \
    --condition "env _ENDAUDA_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=is-args _TYPER_COMPLETE_ARGS=(commandline -cp) endauda 2>/dev/null"
