"""How the rows of a recording's segments become one."""
