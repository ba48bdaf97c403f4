"""The YAML file and the project that it names, as frozen objects.

Reading is strict: an unknown key is an error with the file, the line and the nearest known key.
"""
