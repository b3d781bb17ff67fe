"""What a run leaves behind for people: its folder, its log, its plot, its summary."""
