"""What methods share: prompts as rows, contexts, passes, the search for values, key statistics, solving, settings."""
