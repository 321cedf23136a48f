"""Options: their defaults and limits, how files and words become them, and the page that lists them."""
