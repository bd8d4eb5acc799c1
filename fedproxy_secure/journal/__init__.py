"""What a client has answered, on its own disk: nothing that must happen once rests on Flower's state."""
