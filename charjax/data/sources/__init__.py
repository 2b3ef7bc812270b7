"""Where the bytes of a text come from: files, archives, addresses, named corpora."""
