"""What a notebook works with: sessions it starts, watches and stops, and the promotion of what proved itself."""
