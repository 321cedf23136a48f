"""Options: their defaults and limits, how they are read from files and command line, and the page that lists them."""
