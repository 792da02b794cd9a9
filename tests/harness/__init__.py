"""What tests share and do not declare as fixtures."""
