"""The generated messages of the protocol. Use `countersign.proto`, which has all of them."""
