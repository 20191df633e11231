"""One file per resource. Every route names the scope it needs, or is public."""
