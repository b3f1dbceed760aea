"""Says which kernel a shape runs on, with what launch, and where it would change."""
