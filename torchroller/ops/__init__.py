"""What each ATen operator means as a tensor expression (rules register themselves when lower.py imports them)."""
