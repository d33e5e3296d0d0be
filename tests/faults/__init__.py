"""What goes wrong on its own: killed processes, full disks, notebooks that are none; each one real."""
