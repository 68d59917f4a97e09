"""A virtual machine from what the user asked for (``spec``) to how it ended (``outcome``)."""
