"""All that is particular to scans, one file per capability; the tables of rules name them."""
