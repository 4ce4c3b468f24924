"""What tests share: data, fixtures, processes."""
