"""The defences against attacks of many kinds: every attack is trained, every defence measured."""
