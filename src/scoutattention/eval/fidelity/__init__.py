"""How close the method stays to full attention, token by token, on real text."""
