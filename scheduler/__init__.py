"""What runs next: requests, queue, admission, the step loop and the engine thread."""
