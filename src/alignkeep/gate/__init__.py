"""Gate: a scorecard and a policy in, a verdict out: pass, fail, or these prompts cannot decide."""
