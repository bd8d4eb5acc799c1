"""The tables of a report as numbers: what the page, Markdown files and terminals show of them."""
