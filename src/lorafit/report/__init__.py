"""What runs say of themselves and beside each other, from the files of their directories. Never torch."""
