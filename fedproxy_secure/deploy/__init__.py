"""An owner and her clients on machines of their own: keys made where they stay, kits, start and stop."""
