"""What needs several stages at once; the command line calls it, nothing below imports it."""
