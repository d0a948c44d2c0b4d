"""What vendors are like: one package each, found by the registry; the port says what an adapter is."""
