"""Services: one file a process."""
