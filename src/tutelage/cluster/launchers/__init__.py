"""How machines are started: each module has one launcher, and none of them plans."""
