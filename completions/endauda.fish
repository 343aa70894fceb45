# fish completion for endauda. Installed by 'endauda --install-completion fish', or by hand: put this file into
# ~/.config/fish/completions.
function __endauda_ask --description 'Ask endauda what may follow; fails where file names of fish may'
    set --global __endauda_values
    set --local words (commandline --tokenize --cut-at-cursor --current-process | string match --invert --regex '^\w+=')
    set --local program (string replace --regex '^~/' $HOME/ -- $words[1])
    set --local line (commandline --cut-at-cursor --current-process | string collect --allow-empty)
    set --local answer (env _ENDAUDA_COMPLETE=fish _ENDAUDA_LINE="$line" $program 2>/dev/null)
    if set --query answer[2]
        set __endauda_values $answer[2..-1]
    else if test "$answer[1]" = folders
        set __endauda_values (__fish_complete_directories (commandline --current-token) '')
    else if test "$answer[1]" != values
        return 1
    end
    return 0
end
complete --command endauda --erase
complete --command endauda --no-files --keep-order --condition __endauda_ask --arguments '$__endauda_values'
