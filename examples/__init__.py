"""Projects that use Tidemill as anyone would: a Python module and a YAML file each."""
