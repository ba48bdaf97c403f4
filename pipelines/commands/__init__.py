"""The command line: `cli` is the group; a command is one module that parses, calls and prints."""
