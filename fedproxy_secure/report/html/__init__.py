"""The report's page `report.html`, its tables and its charts."""
