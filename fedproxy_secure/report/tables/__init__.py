"""The tables of a report as numbers, for the page, Markdown files and terminals."""
