"""What programs and notebooks use, and the commands too: `raypaml.Run` and `raypaml.Search`."""
