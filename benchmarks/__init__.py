"""Side-by-side runs behind the figures in the docs."""
