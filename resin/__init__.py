"""resin: finds memory leaks in long-running jobs, diagnoses and mitigates them."""
