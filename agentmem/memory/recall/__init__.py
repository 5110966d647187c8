"""Dynamic recall (DESIGN 9): finding, at decode time, the archived tokens that a query attends to."""
