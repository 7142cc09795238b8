"""One worker's training: the checked job, the loop, one step, and what is kept from step to step."""
