"""What a party's federation does now: structured events, a status page, metrics for Prometheus."""
