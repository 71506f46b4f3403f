"""WHERE it happens: Ray actors and the transport of messages between them."""
