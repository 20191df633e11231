"""One module for every version of the tables; none is changed once a release has it."""
