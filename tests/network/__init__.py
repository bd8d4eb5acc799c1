"""What only a real network shows: hosts with addresses of their own, and what goes wrong between them."""
