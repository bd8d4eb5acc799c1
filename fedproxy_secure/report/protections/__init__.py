"""Protections compared with no protection: how much each weakens each attack, with intervals."""
