"""The command line. `cli` is the group; each command is a module that parses, calls and prints."""
