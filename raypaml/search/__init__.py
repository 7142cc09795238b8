"""Search spaces, the plan of trials, what they share, and what came out: no Ray in here."""
