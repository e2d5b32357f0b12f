"""What is opened towards the destination of a stream."""
