"""Well-known things by kind, and what can be asked about them: questions for any model, without answers.

The model itself is asked, and what it says with confidence is what it knows. So the lists serve where a model that
nobody has described needs facts: neighbors for a check, records for tuning, prompts for the demo.
"""

from engram.kinds.kinds import Kind, Relation, load_kinds

__all__ = ["Kind", "Relation", "load_kinds"]
