"""Boot parameters: what each boot protocol hands to the kernel, built and written to memory."""
