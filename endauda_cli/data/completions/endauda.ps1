# PowerShell completion for endauda. Installed by 'endauda --install-completion powershell', or by hand: call this file
# in your profile.
Register-ArgumentCompleter -Native -CommandName endauda -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $length = $cursorPosition - $commandAst.Extent.StartOffset
    $env:_ENDAUDA_COMPLETE = 'powershell'
    $env:_ENDAUDA_LINE = $commandAst.ToString().PadRight($length).Substring(0, $length)
    $env:_ENDAUDA_WORD = $wordToComplete
    try {
        $answer = @(& $commandAst.GetCommandName() 2>$null)
    }
    catch {
        $answer = @()
    }
    finally {
        Remove-Item Env:_ENDAUDA_COMPLETE, Env:_ENDAUDA_LINE, Env:_ENDAUDA_WORD -ErrorAction SilentlyContinue
    }
    if ($answer.Count -gt 1) {
        foreach ($entry in $answer[1..($answer.Count - 1)]) { # what is inserted, listed and explained
            $insert, $list, $explain = $entry -split "`t"
            if (-not $explain) { $explain = $list }
            [System.Management.Automation.CompletionResult]::new($insert, $list, 'ParameterValue', $explain)
        }
    }
    elseif ($answer.Count -eq 1 -and $answer[0] -eq 'values') {
        '' # else PowerShell offers file names
    }
}
