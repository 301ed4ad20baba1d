"""What went wrong in a distributed run, and is it worth retrying?"""
