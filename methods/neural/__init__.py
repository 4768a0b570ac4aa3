"""Small networks on frozen features: what the neural methods of the catalogue are made of."""
