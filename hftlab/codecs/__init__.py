"""Wire protocols and file formats without sockets: bytes in, rows or events out."""
