"""What an adversary makes of its view: attacks on records, on the LLM's secrecy, on integrity.

Each attack takes a **view** (what corrupted parties saw) and guesses; a separate step scores the guess
against the truth. Start at `attacks.base`; `attacks.suite` runs them. This package builds on
`threat_models` and `fedproxy_secure`; `fedproxy_secure` imports neither.
"""

from attacks.base import Attack, AttackInfo, Budget, Exam, Outcome, attack

__all__ = ["Attack", "AttackInfo", "Budget", "Exam", "Outcome", "attack"]
