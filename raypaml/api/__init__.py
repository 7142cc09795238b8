"""What a program or a notebook uses, and the commands too: `raypaml.Run`."""
