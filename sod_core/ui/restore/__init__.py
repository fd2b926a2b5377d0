"""The Restore tab and its scoreboard."""
