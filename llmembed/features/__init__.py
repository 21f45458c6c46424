"""Features: rows of caches -> scaled and fused, float32 [rows, features]."""
