# bash completion for endauda: source this file, or put it where bash-completion looks
# (~/.local/share/bash-completion/completions/endauda).
_endauda_completion() {
    local IFS=$'\n'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _ENDAUDA_COMPLETE=complete_bash "$1" 2>/dev/null ) )
    return 0
}
complete -o default -F _endauda_completion endauda
