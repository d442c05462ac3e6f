"""What each ATen operator means as a tensor expression."""
