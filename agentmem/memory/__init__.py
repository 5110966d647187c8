"""K and V on the device: segments, the pool that owns them, block hashes, and attention by parts."""
