# bash completion for endauda. Installed by 'endauda --install-completion bash', or by hand: source this file, or put
# it as 'endauda' where the bash-completion package looks (~/.local/share/bash-completion/completions).
_endauda() {
    local kind="" value program="${1/#\~\//$HOME/}"
    COMPREPLY=()
    while IFS= read -r value; do
        if [ -z "$kind" ]; then kind=$value; else COMPREPLY+=("$value"); fi
    done < <(_ENDAUDA_COMPLETE=bash _ENDAUDA_LINE="${COMP_LINE:0:COMP_POINT}" _ENDAUDA_WORD="$2" "$program" 2>/dev/null)
    case $kind in # what to do without a value; bash's own file names are the default
        values) compopt +o default 2>/dev/null ;;
        folders) compopt +o default -o dirnames 2>/dev/null ;;
    esac
    return 0
}
complete -o default -F _endauda endauda
