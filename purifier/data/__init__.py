"""Data sets: the sample type, and readers and writers of the formats users already have."""
