"""Static compression of sealed tokens: which stay resident, their hash codes, and lower-precision copies. Knows no sessions, no model."""
