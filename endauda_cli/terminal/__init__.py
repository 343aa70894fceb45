"""What knows that a terminal exists: results and progress, values for TAB, words as people type them."""
