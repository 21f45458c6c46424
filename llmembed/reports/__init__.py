"""Reports: results -> a terminal, a picture. Rendering only."""
