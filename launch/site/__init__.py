"""What a cluster says of itself, and the profile made from that."""
