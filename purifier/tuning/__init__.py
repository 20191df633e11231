"""Recovery: fine-tuning a compromised checkpoint on purified labels."""
