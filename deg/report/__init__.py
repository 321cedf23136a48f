"""A page that shows how training went and what was predicted in each recording. No torch in here."""
