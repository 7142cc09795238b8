"""The training of one worker: the checked job, the loop, one step, and the state kept from step to step."""
