"""Protections beside no protection: what each takes from each attack, with the difference's interval."""
