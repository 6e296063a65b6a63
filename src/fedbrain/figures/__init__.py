"""One module per figure: tables in, a matplotlib figure out."""
