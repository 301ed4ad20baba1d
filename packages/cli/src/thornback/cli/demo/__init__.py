"""`thornback demo`: a real job that finishes although its processes are being killed."""
