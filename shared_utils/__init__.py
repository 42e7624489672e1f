"""What the notebooks share; each module is one room, and a room knows only the rooms above it (see the README)."""
