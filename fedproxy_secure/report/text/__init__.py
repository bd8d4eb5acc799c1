"""The report as text: terminal tables, Markdown, SARIF, a comment for a pull request."""
