"""What runs leave and what is made of it: rows, tables, pictures, the distilled dataset."""
