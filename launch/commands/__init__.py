"""One file for each family of commands: words in, tables or JSON out."""
