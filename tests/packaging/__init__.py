"""What installs, and what is installed, on folders that stand in for a machine."""
