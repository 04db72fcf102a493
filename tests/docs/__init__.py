"""The documentation is held to what it says: links, anchors, commands, runnable blocks."""
