"""`blocklocal compare`: rules x networks x blocks x seeds, resumable, with a report."""
