"""What may be claimed: records, scoring, statistics and the pages."""
