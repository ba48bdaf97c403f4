"""What a program and workers that do not share its disk give each other, in object storage."""
