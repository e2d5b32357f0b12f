"""What is opened towards the destination of a stream, directly or by one of several servers."""
