"""kafka-python behind the port: no Java, no C library."""
