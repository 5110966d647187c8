"""The command line. One file per command group; client commands load neither torch nor transformers."""
