"""What people look at: pictures and reports from finished runs."""
