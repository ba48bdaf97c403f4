"""The tests: specifications of what each room promises, in a folder for each room."""
