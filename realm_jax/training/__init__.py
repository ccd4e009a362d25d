"""Steps, devices and disks: the one loop that trains every stage."""
