"""Known-bad parties of secure aggregation, and what the protocol answers to them."""
