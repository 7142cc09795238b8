"""Training labels that are likely missing, with their page, and the answers of people who looked at them."""
