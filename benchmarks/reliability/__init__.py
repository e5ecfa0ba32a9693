"""What breaks it: faults and bad inputs in the numbers that shared/reliability.md asks for, and what was survived."""
