"""What a defence is measured with: scenes, triggers, targets, poisoning, the demo model."""
